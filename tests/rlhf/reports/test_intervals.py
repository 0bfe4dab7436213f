"""Intervals over photographs, wins and rank correlation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from rlhf.config.gate_config import GateConfig
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS, Estimate, cluster_bootstrap, rank_correlation, show_estimate, wins


def clustered_data(rng: np.random.Generator, clusters: int = 40, size: int = 8) -> tuple[np.ndarray, list[str]]:
    """Measurements with true mean 1, of which those of a photograph are much alike."""
    level = rng.normal(1.0, 1.0, clusters)
    values = (level[:, None] + rng.normal(0, 0.3, (clusters, size))).ravel()
    return values, [f"photograph-{c}" for c in range(clusters) for _ in range(size)]


def test_interval_covers_the_true_mean_although_measurements_are_clustered() -> None:
    rng = np.random.default_rng(0)
    trials, covered, covered_naively = 160, 0, 0
    for trial in range(trials):
        values, clusters = clustered_data(rng)
        estimate = cluster_bootstrap(values, clusters, resamples=150, seed=trial)
        naive = cluster_bootstrap(values, [str(i) for i in range(len(values))], resamples=60, seed=trial)
        covered += estimate.low <= 1.0 <= estimate.high
        covered_naively += naive.low <= 1.0 <= naive.high
    assert 0.89 <= covered / trials <= 0.99
    assert covered_naively / trials < 0.7


def test_interval_depends_on_photographs_alone() -> None:
    values, clusters = clustered_data(np.random.default_rng(1))
    once = cluster_bootstrap(values, clusters)
    twice = cluster_bootstrap(np.concatenate([values, values]), clusters + clusters)
    assert (once.value, once.clusters) == (pytest.approx(values.mean()), 40)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_same_seed_same_interval() -> None:
    values, clusters = clustered_data(np.random.default_rng(2))
    assert cluster_bootstrap(values, clusters, seed=3) == cluster_bootstrap(values, clusters, seed=3)
    assert cluster_bootstrap(values, clusters, seed=3) != cluster_bootstrap(values, clusters, seed=4)


@pytest.mark.parametrize(("photographs", "has_interval"), [(1, False), (5, False), (6, True)])
def test_below_six_photographs_there_is_no_interval_however_many_measurements(
    photographs: int, has_interval: bool
) -> None:
    names = [f"photograph-{i % photographs}" for i in range(60)]
    estimate = cluster_bootstrap(np.arange(60.0), names)
    assert (estimate.value, estimate.clusters) == (29.5, photographs)
    assert np.isfinite([estimate.low, estimate.high]).tolist() == [has_interval] * 2


def test_five_wins_of_five_can_be_chance_and_six_of_six_cannot() -> None:
    assert 0.5 ** (LEAST_PHOTOGRAPHS - 1) > 0.025 >= 0.5**LEAST_PHOTOGRAPHS
    assert GateConfig().min_photographs == LEAST_PHOTOGRAPHS
    with pytest.raises(ValueError, match="greater than or equal to 6"):
        GateConfig(min_photographs=LEAST_PHOTOGRAPHS - 1)


def test_unequal_photographs_keep_their_own_rows_in_a_statistic_of_pairs() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=30)
    pairs = np.stack([first, first**3], 1)
    clusters = ["a"] * 3 + ["b"] * 10 + ["c"] * 8 + ["d", "e", "f"] * 3
    estimate = cluster_bootstrap(pairs, clusters, resamples=50, statistic=rank_correlation)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.0, 1.0, 1.0))


def test_an_estimate_is_shown_with_its_interval_and_without_one_where_there_is_none() -> None:
    found = Estimate(value=0.5, low=0.25, high=0.75, clusters=6)
    assert show_estimate(found, ".1%") == "50.0% [25.0%, 75.0%]"
    assert show_estimate(replace(found, low=np.nan, high=np.nan), "+.2f") == "+0.50 (no interval)"
    assert show_estimate(replace(found, clusters=5), "+.2f") == "+0.50 (no interval)", "as in files of earlier versions"
    assert [show_estimate(none, ".2f") for none in (None, replace(found, value=np.nan))] == ["-"] * 2


def test_a_tie_is_half_a_win() -> None:
    assert wins(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])).tolist() == [1.0, 0.5, 0.0]
    a, b = np.random.default_rng(0).integers(0, 3, (2, 100))
    assert (wins(a, b) + wins(b, a)).tolist() == [1.0] * 100


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_spearmans_also_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = np.stack([rng.integers(0, 6, 50), rng.normal(size=50)], 1)
    pairs[:, 1] += 0.3 * pairs[:, 0]
    assert rank_correlation(pairs) == pytest.approx(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def test_rank_correlation_with_a_constant_is_not_a_number() -> None:
    assert np.isnan(rank_correlation(np.stack([np.ones(5), np.arange(5)], 1)))
