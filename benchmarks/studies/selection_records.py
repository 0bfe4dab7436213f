"""Records of the study of selection."""

from dataclasses import dataclass

from rlhf.reports.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class RewardPoint:
    """Errors of a reward on held-out annotations; the noiseless ones need simulated annotators."""

    annotations: int
    """Number of annotations from which the reward learned."""
    squared_error: float
    absolute_error: float
    pair_accuracy: float | None
    squared_error_noiseless: float | None = None
    absolute_error_noiseless: float | None = None
    pair_accuracy_noiseless: float | None = None


@dataclass(frozen=True, kw_only=True)
class PointMeans:
    """Means of RewardPoint, or of differences of two, over splits."""

    annotations: float
    squared_error: Estimate | None
    absolute_error: Estimate | None
    pair_accuracy: Estimate | None
    squared_error_noiseless: Estimate | None
    absolute_error_noiseless: Estimate | None
    pair_accuracy_noiseless: Estimate | None


@dataclass(frozen=True, kw_only=True)
class SelectionSummary:
    """Summary of all splits, by learning and selection."""

    seeds: int
    curves: dict[str, list[PointMeans]]
    """Means after each portion."""
    differences: dict[str, list[PointMeans]]
    """Paired differences from random selection after each further portion."""
