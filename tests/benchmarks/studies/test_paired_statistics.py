"""What a few pairs can tell: intervals, the smallest effect they would have shown, Holm."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.studies.paired_statistics import estimate_paired, smallest_detectable
from rlhf.reports.significance import holm

DIFFERENCES = [0.3, -0.1, 0.5, 0.2, 0.4]


def test_interval_and_test_are_scipys_paired_t() -> None:
    found, reference = estimate_paired(DIFFERENCES), ttest_1samp(DIFFERENCES, 0)
    assert found.value == pytest.approx(0.26)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert found.p_value == pytest.approx(reference.pvalue)


def test_a_narrower_level_gives_a_wider_interval() -> None:
    found, reference = estimate_paired(DIFFERENCES, level=0.005), ttest_1samp(DIFFERENCES, 0)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.995)))


def test_one_pair_has_a_value_and_nothing_else() -> None:
    found = estimate_paired([0.3])
    assert (found.value, found.low, found.high, found.p_value, found.detectable) == (0.3, None, None, None, None)


def test_pairs_that_never_differ_are_no_finding() -> None:
    found = estimate_paired([0.0, 0.0, 0.0])
    assert (found.low, found.high, found.p_value, found.detectable) == (0.0, 0.0, 1.0, 0.0)


def test_pairs_that_differ_all_by_the_same_have_no_interval() -> None:
    found = estimate_paired([0.5, 0.5, 0.5])
    assert (found.value, found.low, found.high, found.p_value) == (0.5, None, None, None)


@pytest.mark.parametrize("pairs", [3, 5, 20])
def test_the_smallest_detectable_effect_is_found_four_times_in_five(pairs: int) -> None:
    """Slow reference: t tests of simulated pairs."""
    sd, rng = 2.0, np.random.default_rng(0)
    draws = rng.normal(smallest_detectable(sd, pairs), sd, size=(20_000, pairs))
    rejected = ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)


def test_fewer_pairs_detect_less() -> None:
    assert smallest_detectable(1.0, 3) > 1.8 * smallest_detectable(1.0, 5) > smallest_detectable(1.0, 10)


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
