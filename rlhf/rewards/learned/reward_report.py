"""Records of `report.json`: figures of a reward model on held-out annotations, in standard deviations of the scores.

`dataclasses.asdict` gives the keys of the file.
"""

from dataclasses import dataclass
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12.

from rlhf.reports.intervals import Estimate
from rlhf.reports.records import Number
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
    mean_width: Number
    """Mean full width of the conformal bound."""
    mean_theorem_width: Number
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


class EpochFigures(TypedDict):
    """Line of `learning_curve.jsonl`."""

    epoch: int
    """Number of the epoch, from 1."""
    loss: float
    """Mean objective on the trained photographs, augmented."""
    validation: NotRequired[float]
    """Objective on held-out photographs, if there are any."""


@dataclass(frozen=True, kw_only=True)
class AnnotationCounts:
    """Annotations behind a reward, and the photographs of the parts A, B, C and D."""

    is_simulated: bool
    """Whether any annotation is simulated."""
    simulated_annotations: int
    annotations: int
    annotators: int
    annotations_per_part: list[int]
    candidates_per_part: list[int]
    photographs_per_part: list[int]
    parts: list[list[str]]
    """Names of the photographs of each part."""


@dataclass(frozen=True, kw_only=True)
class FeatureFigures:
    """Figures of the features, the ends of the uncertainty, and the origin of the report."""

    coverage_by_level: list[LevelCoverage]
    effective_rank: float
    """Effective rank of Z'Z on part B."""
    spectrum: list[float]
    """Eigenvalues of Z'Z on part B over their sum, largest first."""
    is_noise_measured: bool
    """Whether the noise B comes from images annotated repeatedly; otherwise from the residuals of A's head."""
    trusted: TrustEnds
    feature_dim: int
    unknown_annotations: int
    """Number of annotations without a candidate, which are left out."""
    learning_curve: list[EpochFigures]
    """Empty if no curve was recorded."""
    command: str | None
    """Command that trained the reward."""


@dataclass(frozen=True, kw_only=True)
class RewardReport(AnnotationCounts, FeatureFigures, RiskCoverage, GroupFigures, BoundFigures):
    """Content of `report.json` after `rlhf reward`."""


@dataclass(frozen=True, kw_only=True)
class KeptFigures:
    """Figures of the first fit, which updates keep; `FeatureFigures` describes them."""

    effective_rank: float
    spectrum: list[float]
    feature_dim: int
    is_noise_measured: bool


@dataclass(frozen=True, kw_only=True)
class UpdatedReport(BoundFigures, KeptFigures):
    """Content of `report.json` after an update, and what every report has."""

    is_simulated: bool
    annotations_per_part: list[int]
    photographs_per_part: list[int]
    parts: list[list[str]]
    updates: int = 0
    """Number of updates since the first fit."""
