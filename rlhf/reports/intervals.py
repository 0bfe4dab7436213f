"""95 % intervals over photographs, and the rates for which they are given.

Measurements of one photograph are alike, so photographs are the units. A figure is computed again without each of them
(the jackknife), which tells how much it varies between photographs. `benchmarks/interval_coverage.py` simulates how
often the intervals hold the true figure, beside those of the usual bootstraps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.reports.records import Number

LEAST_PHOTOGRAPHS = 6
"""Fewest photographs for which an interval is given. With five, an equal contestant wins all five by chance with
probability 2^-5 = 3.1 %, more than the 2.5 % tail of a 95 % interval."""
LEVEL = 0.05
"""Probability that an interval misses the true figure."""
UNSEEN_PHOTOGRAPHS = 0.2
"""Photographs won by half that a share's variance counts besides those drawn: among few of which nearly all are won,
those that are lost are often missing. Chosen by `benchmarks/interval_coverage.py`."""
ROUNDING = 1e-5
"""Largest difference between photographs, as a share of the largest value, that is taken for rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval, which does not exist below LEAST_PHOTOGRAPHS; NaN stands for no value."""

    value: Number
    low: Number
    high: Number
    clusters: int
    """Number of photographs, or of other units, that the interval is over."""

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


def estimate_figure(
    values: np.ndarray,
    clusters: Sequence[str],
    *,
    statistic: Callable[[np.ndarray], float] = lambda v: float(v.mean()),
    level: float = LEVEL,
) -> Estimate:
    """Returns a statistic with its interval: Student's t, corrected for skewness (Hall 1992, J. R. Stat. Soc. B 54).

    Skewness is estimated too, so t has two degrees of freedom less than there are photographs, where the usual one has
    one less. Where photographs do not differ there is no interval, since nothing tells how much others would.

    Args:
        values: [N] or [N, m], one row per measurement; rows with NaN or infinity do not count.
        clusters: the photograph of each row.
        statistic: takes rows as `values` has them; by default their mean.
        level: probability that the interval misses the true figure.
    """
    value, changes = _leave_out(values, clusters, statistic)
    low, high = _ends_by_t(value, changes, level)
    return Estimate(value=value, low=low, high=high, clusters=len(changes))


def estimate_share(values: np.ndarray, clusters: Sequence[str]) -> Estimate:
    """Returns the mean of values from 0 to 1, such as wins, with its interval.

    The interval is Wilson's (1927), with a quantile of Student's t and the number of trials whose variance is that
    found between photographs, to which UNSEEN_PHOTOGRAPHS adds. If all values are 0 or all are 1, the interval is that
    of Clopper and Pearson (1934) with the photographs as trials. Where photographs do not differ otherwise, there is
    none.

    Args:
        values: [N], one per measurement; NaN does not count.
        clusters: the photograph of each value.
    """
    value, changes = _leave_out(values, clusters, lambda v: float(v.mean()))
    low, high = _ends_of_share(value, changes)
    return Estimate(value=value, low=low, high=high, clusters=len(changes))


def _leave_out(
    values: np.ndarray, clusters: Sequence[str], statistic: Callable[[np.ndarray], float]
) -> tuple[float, np.ndarray]:
    """Returns a statistic, and by how much each photograph moves it [n]: the jackknife's pseudo-values less their mean.

    For a mean over photographs of equal size, these are the photographs' means less that mean.
    """
    known = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    values, labels = values[known], np.asarray(clusters)[known]
    names = np.unique(labels)
    if not len(names):
        return math.nan, np.empty(0)
    value = float(statistic(values))
    if len(names) < LEAST_PHOTOGRAPHS:  # There will be no interval, and a statistic may need two photographs.
        return value, np.full(len(names), np.nan)
    without = np.array([statistic(values[labels != name]) for name in names])
    changes = (len(names) - 1) * (without.mean() - without)
    is_rounding = np.abs(changes).max() <= ROUNDING * np.abs(values).max()
    return value, np.zeros(len(names)) if is_rounding else changes


def _ends_by_t(value: float, changes: np.ndarray, level: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    n = len(changes)
    if not np.isfinite(changes).all() or not changes.any():
        return math.nan, math.nan
    skewness = float((changes**3).mean() / changes.std() ** 3)
    ends = np.array([1.0, -1.0]) * float(stdtrit(n - 2, 1 - level / 2)) / math.sqrt(n)
    if abs(skewness) > 1e-9:
        ends = 3 / skewness * (np.cbrt(1 + skewness * (ends - skewness / (6 * n))) - 1)
    low, high = value - float(changes.std(ddof=1)) * ends
    return float(low), float(high)


def _ends_of_share(value: float, changes: np.ndarray) -> tuple[float, float]:
    from scipy.special import stdtrit

    n = len(changes)
    if not np.isfinite(changes).all():
        return math.nan, math.nan
    if value in (0.0, 1.0):
        bound = (LEVEL / 2) ** (1 / n)
        return (bound, 1.0) if value else (0.0, 1 - bound)
    if not changes.any():
        return math.nan, math.nan
    quantile = float(stdtrit(n - 1, 1 - LEVEL / 2))
    variance = float(changes.var(ddof=1)) + UNSEEN_PHOTOGRAPHS * (value - 0.5) ** 2 / n
    error = quantile**2 * variance / n
    shrinkage = error / (value * (1 - value))  # The squared quantile over the number of trials.
    middle, half = value + shrinkage / 2, math.sqrt(error + shrinkage**2 / 4)
    return (middle - half) / (1 + shrinkage), (middle + half) / (1 + shrinkage)


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
