"""Tests of differences between contestants: sign flips of whole photographs, and Holm's correction."""

from collections.abc import Sequence

import numpy as np


def sign_flip_test(
    differences: np.ndarray, clusters: Sequence[str], *, resamples: int = 20_000, seed: int = 0
) -> float:
    """Returns the two-sided p value of the hypothesis that the mean difference is 0.

    Under that hypothesis the differences [N] of a photograph are as likely with the opposite sign, so the signs of
    whole photographs are flipped. All sign patterns are tried if there are at most `resamples`; otherwise `resamples`
    random ones, to which the observed pattern is added so that p is never 0 (Phipson and Smyth 2010).
    """
    from scipy.stats import permutation_test

    _, places = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(places, weights=differences)
    scale = np.abs(sums).sum()
    if len(sums) < 2 or scale == 0:
        return 1.0  # All sign patterns are equally extreme.
    test = permutation_test(
        (sums / scale,),
        # Sums that are equal up to the order of addition are ties.
        lambda flipped, axis: np.abs(flipped.sum(axis)).round(9),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=resamples,
        alternative="greater",
        rng=seed,
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted for the number of tests (Holm 1979), in the order given."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
