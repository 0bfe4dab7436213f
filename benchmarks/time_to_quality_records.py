"""Records of the time to quality: `time_to_quality.json`, and the judged curve that it reads."""

from dataclasses import dataclass
from typing import Literal

from rlhf.evaluation.evaluation import GOLD_JUDGE

Bound = Literal["", "at most", "none"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Costs of an alignment until it met a criterion; its total costs if it never did."""

    is_reached: bool
    costs: dict[str, float]
    """Costs by the names of COSTS."""
    best: float
    """Highest value, WinRate or mean gold mark, of its saved policies."""


@dataclass(frozen=True, kw_only=True)
class ArmSeed:
    """An alignment: an arm with a seed."""

    arm: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ArmSpent(Spent, ArmSeed):
    """Costs of one alignment."""


@dataclass(frozen=True, kw_only=True)
class ArmCurve(ArmSeed):
    """Curve of one alignment."""

    policies: list[list[float]]
    """Updates, WinRate and mean gold mark of each saved policy."""


@dataclass(frozen=True, kw_only=True)
class CostRatios:
    """Costs of an arm over those of the reference: geometric means over seeds, with t intervals of the logarithms."""

    arm: str
    seeds: list[int]
    bound: Bound
    """`at most` if only the reference misses the target in a seed, so that ratios are upper bounds; `none` if the arm
    misses it, so that there are no ratios."""
    ratios: dict[str, list[float | None]]
    """Value, lower end and upper end by the names of COSTS."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Costs until one criterion is met."""

    spent: list[ArmSpent]
    ratios: list[CostRatios]


@dataclass(frozen=True, kw_only=True)
class TimeToQuality:
    """Content of `time_to_quality.json`."""

    judge: str = GOLD_JUDGE
    target_win_rate: float
    reached: dict[str, Reached]
    """Costs by criterion."""
    curves: list[ArmCurve]
    missing: list[str]
    """Alignments that are not finished."""


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """WinRate over the base model, without its interval."""

    value: float


@dataclass(frozen=True, kw_only=True)
class JudgedPolicy:
    """Point of the curve in `summary.json`, as far as it is needed here."""

    policy_version: int
    gold: float
    win_rate: WinRate


@dataclass(frozen=True, kw_only=True)
class JudgedCurve:
    """The curve in `summary.json`."""

    curve: list[JudgedPolicy]
