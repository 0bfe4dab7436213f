"""Records of the study of trust, as `trust_study.json` holds them."""

from dataclasses import dataclass

from benchmarks.studies.paired_statistics import PairedEstimate
from benchmarks.studies.trust_curves import Onset
from rlhf.evaluation.evaluation import GOLD_JUDGE
from rlhf.reports.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class ArmFigures:
    """Rises of one arm over the base model; the lists of lists are by seed and saved policy."""

    seeds: list[int]
    updates: list[int]
    """Updates of the saved policies."""
    reward_rise: list[list[float]]
    final_reward: PairedEstimate
    gold_rise: list[list[float]]
    final_gold: PairedEstimate
    best_gold: PairedEstimate
    best_gold_at: list[int]
    """Update of the highest rise by seed."""
    onsets: list[Onset | None]
    """Onset of over-optimisation by seed."""
    updates_to_level: list[float | None]
    """Updates to the common reward by seed; None if it is not reached."""
    spread: dict[str, float]
    """Means of the figures of `measure_spread` over seeds."""


@dataclass(frozen=True, kw_only=True)
class ArmComparison(PairedEstimate):
    """One arm minus another, paired by seed."""

    measure: str
    """One of MEASURES."""
    arm: str
    other: str
    seeds: list[int]
    p_holm: float | None = None
    """p after Holm's correction within the measure."""


@dataclass(frozen=True, kw_only=True)
class RiseComparison(ArmComparison):
    """Comparison of rises."""

    of_other: float
    """Mean rise of the other arm."""
    over_photographs: Estimate | None
    """Difference of the last policies with its interval over photographs."""


@dataclass(frozen=True, kw_only=True)
class TimeComparison(ArmComparison):
    """Comparison of log(T_other / T_arm), where T are updates to the common reward."""

    times: list[tuple[float | None, float | None]]
    """Updates of arm and other by seed; None if the reward is not reached."""
    censored: list[int]
    """Seeds without one of the two times."""
    at_most: bool
    """Whether the figures are upper bounds."""


Comparison = RiseComparison | TimeComparison


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Claim of the paper with its verdict."""

    claim: str
    verdict: str
    stated: float | None
    """Size that the paper states."""
    figures: Comparison | None


@dataclass(frozen=True, kw_only=True)
class TrustSummary:
    """Figures of the finished runs."""

    arms: dict[str, ArmFigures]
    comparisons: list[Comparison]
    claims: list[Claim]
    constant_is_none: bool | None
    """Whether `constant` equals `none` to the last bit; None before both have run."""
    level_share: float
    missing: list[str]
    """Runs that are not finished."""
    judge: str = GOLD_JUDGE
