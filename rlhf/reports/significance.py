"""Tests of differences between contestants: sign flips of whole photographs, and Holm's correction.

All that another test changes is here: the test, its name, the smallest p that it can have, and the level.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlhf.reports.intervals import Estimate, estimate_figure

TEST_NAME = "sign flips of whole photographs"
"""Name of the test in tables and pages."""
SIGNIFICANT = 0.05
"""Significance level of p after Holm's correction."""


@dataclass(frozen=True, kw_only=True)
class PairTest:
    """Test of one measure for one pair of contestants."""

    measure: str
    first: str
    second: str
    difference: Estimate
    """Second minus first."""
    p: float
    """Two-sided p of the test."""
    p_holm: float
    """The same after Holm's correction for all tests of the comparison."""

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p is below the significance level."""
        return self.p_holm < SIGNIFICANT


def compare_pairs(
    columns: Mapping[str, Mapping[str, np.ndarray]], tested: Collection[str], photographs: Sequence[str]
) -> list[PairTest]:
    """Tests every pair of contestants by every measure that both have.

    Shapes: `columns` by contestant and measure [P], NaN where a prompt has no value; P names of photographs.
    """
    found = []
    for name in tested:
        for first, second in combinations(columns, 2):
            if name not in columns[first] or name not in columns[second]:
                continue
            difference = columns[second][name] - columns[first][name]
            known = np.isfinite(difference)
            own = [photographs[i] for i in np.flatnonzero(known).tolist()]
            if own:
                estimate = estimate_figure(difference[known], own)
                found.append((name, first, second, estimate, sign_flip_test(difference[known], own)))
    return [
        PairTest(measure=name, first=first, second=second, difference=estimate, p=p, p_holm=adjusted)
        for (name, first, second, estimate, p), adjusted in zip(found, holm([test[-1] for test in found]), strict=True)
    ]


def note_weak_tests(tests: int, photographs: int) -> list[str]:
    """Returns a note if no test can be significant after Holm's correction.

    The smallest p of a sign-flip test, 2 in 2^photographs, belongs to differences of one sign in all photographs.
    """
    least = tests * 2.0 ** (1 - photographs)
    if not tests or least < SIGNIFICANT:
        return []
    return [
        f"{photographs} photographs are too few for {tests} tests: after Holm's correction no p can be below "
        f"{min(least, 1):.2g}"
    ]


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
