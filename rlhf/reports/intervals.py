"""Intervals by bootstrap over photographs, and the rates that rest on them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_PHOTOGRAPHS = 6
"""With fewer, a contestant no better than the other wins all of them by chance in more than 2.5 %, of five in 2^-5 or
3.1 %, which an interval of 95 % could not tell from a better one: there is none then."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    """NaN, as `high` is, where there is no interval."""
    high: float
    clusters: int
    """Photographs that it rests on, or whatever else was resampled."""


def cluster_bootstrap(
    values: np.ndarray,
    clusters: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    statistic: Callable[[np.ndarray], float] = lambda v: float(v.mean()),
) -> Estimate:
    """A statistic with its 95 % percentile interval, resampling whole photographs; none below LEAST_PHOTOGRAPHS.

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


def bootstrap_means(
    values: np.ndarray, clusters: Sequence[str], *, resamples: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Means of columns, each over the rows where it is no NaN: [m], and of resamples of whole photographs, [B, m].

    `cluster_bootstrap` of many columns at once, all on the same draws, so that ratios of means can be taken of them.
    NaN where no row has a value.

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


def sign_flip_test(
    differences: np.ndarray, clusters: Sequence[str], *, resamples: int = 20_000, seed: int = 0
) -> float:
    """Two-sided p that the mean difference is 0, by flipping the signs of whole photographs.

    Under the hypothesis that two contestants are alike, a photograph's differences [N] are as likely with the other
    sign. All sign patterns are tried where they are no more than `resamples`, else as many at random, with the
    observed one among them, so that p is never 0 (Phipson and Smyth 2010).
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(place, weights=differences)
    if 2 ** len(sums) <= resamples:
        patterns = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1).T
    else:
        patterns = np.random.default_rng(seed).choice([-1, 1], size=(resamples, len(sums)))
        patterns[0] = 1
    # Equal sums in another order of addition may differ in the last bits.
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    return float((np.abs(patterns @ sums) >= least).mean())


def best_of(sizes: int, chosen: int) -> np.ndarray:
    """[sizes]: how likely the sample of each rank, best first, is the best of `chosen` drawn without replacement."""
    total = math.comb(sizes, chosen)
    return np.array([math.comb(sizes - 1 - rank, chosen - 1) / total for rank in range(sizes)])


def summarise_draws(value: float, draws: np.ndarray, clusters: int) -> Estimate:
    """A statistic with the 95 % percentile interval of its resamples [B].

    Resamples without a value, as a correlation with a constant has none, are passed over. The ends are NaN below
    LEAST_PHOTOGRAPHS, and where no resample has a value.
    """
    drawn = draws[np.isfinite(draws)]
    has_interval = clusters >= LEAST_PHOTOGRAPHS and len(drawn) > 0
    low, high = np.percentile(drawn, [2.5, 97.5]) if has_interval else (np.nan, np.nan)
    return Estimate(value=float(value), low=float(low), high=float(high), clusters=clusters)


def show_estimate(estimate: Mapping[str, Any] | None, spec: str, *, without: str = " (no interval)") -> str:
    """An `Estimate` as a dict, perhaps from JSON, as text: `value [low, high]`; `-` where there is no value.

    `without` stands for the interval where there is none.
    """
    if estimate is None or not _is_number(estimate["value"]):
        return "-"
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    # Files of earlier versions hold intervals of fewer.
    is_enough = estimate.get("clusters", LEAST_PHOTOGRAPHS) >= LEAST_PHOTOGRAPHS
    interval = f" [{low:{spec}}, {high:{spec}}]" if is_enough and _is_number(low) else without
    return f"{value:{spec}}{interval}"


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
