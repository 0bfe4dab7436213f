"""95 % intervals by bootstrap over photographs, and the rates for which they are given."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.reports.records import Number

LEAST_PHOTOGRAPHS = 6
"""Fewest photographs for which an interval is given. With five, an equal contestant wins all five by chance with
probability 2^-5 = 3.1 %, more than the 2.5 % tail of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, which does not exist below LEAST_PHOTOGRAPHS; NaN stands for no value."""

    value: Number
    low: Number
    high: Number
    clusters: int
    """Number of photographs, or of other units, that were resampled."""

    def __post_init__(self) -> None:
        """Drops an interval of too few clusters; files of earlier versions hold such intervals."""
        if self.clusters < LEAST_PHOTOGRAPHS:
            object.__setattr__(self, "low", math.nan)
            object.__setattr__(self, "high", math.nan)


class Interval(Protocol):
    """Any figure with an interval; None and NaN stand for no value."""

    @property
    def value(self) -> float | None:
        """The figure."""

    @property
    def low(self) -> float | None:
        """Lower end."""

    @property
    def high(self) -> float | None:
        """Upper end."""


def cluster_bootstrap(
    values: np.ndarray,
    clusters: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Callable[[np.ndarray], float] = lambda v: float(v.mean()),
) -> Estimate:
    """Returns a statistic with its 95 % percentile interval from resamples of whole photographs.

    Args:
        values: [N] or [N, m], one row per measurement.
        clusters: the photograph of each row.
    """
    names = sorted(set(clusters))
    labels = np.asarray(clusters)
    members = [np.flatnonzero(labels == name) for name in names]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples if len(names) >= LEAST_PHOTOGRAPHS else 0):
        chosen = rng.integers(0, len(names), size=len(names))
        draws.append(statistic(values[np.concatenate([members[c] for c in chosen])]))
    return summarise_draws(statistic(values), np.array(draws), len(names))


def bootstrap_means(
    values: np.ndarray, clusters: Sequence[str], *, resamples: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means of columns [m], and their means in resamples of whole photographs [B, m].

    This is `cluster_bootstrap` for many columns at once. All columns share the same draws, so ratios of their means
    can be formed draw by draw. Rows that are NaN in a column do not count there; a column without values gives NaN.

    Args:
        values: [N, m], one row per prompt.
        clusters: the photograph of each row.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(place.max()) + 1
    known = np.isfinite(values)
    sums, sizes = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(sums, place, np.where(known, values, 0.0))
    np.add.at(sizes, place, known)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.sum(0) / sizes.sum(0), (draws @ sums) / (draws @ sizes)


def summarise_draws(value: float, draws: np.ndarray, clusters: int) -> Estimate:
    """Returns a statistic with the 95 % percentile interval of its resamples [B].

    Resamples without a value, such as a correlation with a constant, are ignored. The ends are NaN if none remains.
    """
    drawn = draws[np.isfinite(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Estimate(value=float(value), low=float(low), high=float(high), clusters=clusters)


def wins(challenger: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns 1 where the challenger scores higher, 0.5 at a tie and 0 otherwise."""
    return (challenger > base) + 0.5 * (challenger == base)


def best_of(sizes: int, chosen: int) -> np.ndarray:
    """Returns the probabilities [sizes] that the sample of each rank, best first, is the best of `chosen` samples.

    The `chosen` samples are drawn without replacement.
    """
    total = math.comb(sizes, chosen)
    return np.array([math.comb(sizes - 1 - rank, chosen - 1) / total for rank in range(sizes)])


def rank_correlation(pairs: np.ndarray) -> float:
    """Returns Spearman's rho of two columns [N, 2], or NaN if one of them is constant."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(pairs[:, 0]), rankdata(pairs[:, 1])])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def show_estimate(estimate: Interval | None, spec: str, *, without: str = " (no interval)") -> str:
    """Formats a figure as `value [low, high]`, or as `-` if it has no value.

    `without` replaces the interval if there is none.
    """
    if estimate is None or not _is_number(estimate.value):
        return "-"
    interval = f" [{estimate.low:{spec}}, {estimate.high:{spec}}]" if _is_number(estimate.low) else without
    return f"{estimate.value:{spec}}{interval}"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
