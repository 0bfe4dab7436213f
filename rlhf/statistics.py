"""Intervals by bootstrap over photographs, and the rates that rest on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    clusters: int
    """Photographs that it rests on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.clusters} photographs)"


def cluster_bootstrap(
    values: np.ndarray,
    clusters: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Callable[[np.ndarray], float] = lambda v: float(v.mean()),
) -> Estimate:
    """A statistic with its 95 % percentile interval, resampling whole photographs.

    Args:
        values: [N] or [N, m], one row per measurement.
        clusters: the photograph of each row.
    """
    names = sorted(set(clusters))
    labels = np.asarray(clusters)
    members = [np.flatnonzero(labels == name) for name in names]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        chosen = rng.integers(0, len(names), size=len(names))
        draws.append(statistic(values[np.concatenate([members[c] for c in chosen])]))
    # Where no draw has a value, as a correlation with a constant has none, neither has the interval.
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Estimate(value=statistic(values), low=float(low), high=float(high), clusters=len(names))


def wins(challenger: np.ndarray, base: np.ndarray) -> np.ndarray:
    """1 where the challenger scores higher, 0.5 at a tie, 0 otherwise."""
    return (challenger > base) + 0.5 * (challenger == base)


def rank_correlation(pairs: np.ndarray) -> float:
    """Spearman's rho of two columns [N, 2]; NaN where one is constant."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(pairs[:, 0]), rankdata(pairs[:, 1])])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])
