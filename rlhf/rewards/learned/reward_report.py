"""Records of `report.json`: figures of a reward model on held-out annotations, in standard deviations of the scores.

`dataclasses.asdict` gives the keys of the file.
"""

from dataclasses import dataclass

from rlhf.reports.intervals import Estimate
from rlhf.rewards.learned.reward_model import Calibration


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Means over one fifth of the annotations, by uncertainty."""

    uncertainty: float
    error: float
    bound: float
    """Mean of conformal multiplier x uncertainty."""
    coverage: float
    """Share of the errors within the bound."""


@dataclass(frozen=True, kw_only=True)
class PairAccuracy(Estimate):
    """Share of pairs of one prompt's samples that the reward orders as the scores do."""

    pairs: int


@dataclass(frozen=True, kw_only=True)
class GroupErrors:
    """Size of a group of annotations, its mean |score - reward|, and the coverage of the bound in it."""

    name: str
    annotations: int
    candidates: int
    photographs: int
    error: Estimate
    coverage: Estimate


@dataclass(frozen=True, kw_only=True)
class CalibrationPoint:
    """Mean reward and mean score of a group of annotations."""

    reward: float
    score: Estimate


@dataclass(frozen=True, kw_only=True)
class BoundFigures:
    """Figures of the bound and of the reward's order; they need neither pictures nor prompts."""

    calibration: Calibration
    coverage_stated: float
    coverage_measured: Estimate
    mean_width: float
    """Mean full width of the conformal bound."""
    mean_theorem_width: float
    """Mean full width of the theorem's bound."""
    rank_correlation_error_uncertainty: Estimate
    rank_correlation_reward_score: Estimate
    pair_accuracy: float | None
    reliability: list[Reliability]
    error: Estimate


@dataclass(frozen=True, kw_only=True)
class GroupFigures:
    """Accuracy of pairs, and errors by kind of prompt."""

    pair_accuracy_interval: PairAccuracy | None
    error_by_source: list[GroupErrors]
    error_by_hole: list[GroupErrors]
    error_by_hole_size: list[GroupErrors]
    calibration_curve: list[CalibrationPoint]


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """Candidate at one end of the uncertainty, with its mean score."""

    prompt_id: str
    sample_index: int
    photograph: str
    hole: str
    reward: float
    uncertainty: float
    bound: float
    score: float
    annotations: int


@dataclass(frozen=True, kw_only=True)
class TrustEnds:
    """Most and least certain candidates, the extreme ones first, none in both."""

    most: list[RankedCandidate]
    least: list[RankedCandidate]


@dataclass(frozen=True, kw_only=True)
class LevelCoverage:
    """Bound calibrated for one nominal coverage; None if the calibrating part is too small for the level."""

    level: float
    """Nominal coverage."""
    multiplier: float | None = None
    """Conformal multiplier."""
    coverage: Estimate | None = None
    """Measured coverage."""
    width: float | None = None
    """Mean full width."""


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """Mean |error| of the most certain shares of the annotations, by three orders."""

    shares: list[float]
    model: list[float]
    """Risk in the order of the uncertainty."""
    random: list[float]
    """Risk in random order: the mean error."""
    oracle: list[float]
    """Risk in the order of the errors themselves: the least possible."""


@dataclass(frozen=True, kw_only=True)
class RiskArea:
    """Areas under the three curves (AURC), and the gain of the model over random order."""

    model: float
    random: float
    oracle: float
    gain: Estimate


@dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """Risk-coverage curve and the areas under it."""

    risk_coverage: RiskCurve
    aurc: RiskArea
