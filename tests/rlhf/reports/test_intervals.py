"""Intervals over photographs, wins and rank correlation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import sem, spearmanr, t

from benchmarks.interval_coverage import FIGURES, METHODS, SHARES, list_settings, simulate
from rlhf.config.gate_config import GateConfig
from rlhf.reports.intervals import (
    LEAST_PHOTOGRAPHS,
    Estimate,
    estimate_figure,
    estimate_share,
    rank_correlation,
    show_estimate,
    wins,
)

SIMULATED = (
    "0.7, 16 per photograph, correlation 0.3, ties 0",
    "0.85, 16 per photograph, correlation 0.3, ties 0",
    "0.95, 4 per photograph, correlation 0.1, ties 0.5",
    "0.95, 16 per photograph, correlation 0.3, ties 0",
    "Student's t, 5 degrees of freedom",
    "skewness 2 (exponential)",
)


@pytest.mark.parametrize("photographs", [6, 10])
def test_intervals_hold_the_truth_as_often_as_they_say_where_those_of_the_percentile_bootstrap_do_not(
    photographs: int,
) -> None:
    trials = 1000
    settings = [s for s in list_settings() if s.name in SIMULATED]
    assert len(settings) == len(SIMULATED)
    methods = {FIGURES: METHODS[FIGURES], SHARES: METHODS[SHARES], "percentile": METHODS["percentile bootstrap"]}
    found = simulate(settings, photographs, trials, methods, seed=1).groupby("method")["holds"]
    # Two standard errors of the simulation are 1.4 points.
    assert found.min()[FIGURES] > 0.935 - 0.014
    assert found.min()[SHARES] > 0.935 - 0.014
    assert found.mean()["percentile"] < 0.9


def test_a_policy_that_is_no_better_passes_the_gate_in_three_percent_of_trials_at_most() -> None:
    even = [setting for setting in list_settings() if setting.name.startswith("0.5, 16")]
    found = [simulate(even, n, 1500, {SHARES: METHODS[SHARES]}, seed=2)["above"].max() for n in (6, 8)]
    assert max(found) <= 0.03


def test_an_interval_is_students_where_photographs_are_symmetric_and_leans_to_the_long_tail() -> None:
    clusters = [str(i) for i in range(8)]
    symmetric, skewed = np.arange(8.0), np.exp(np.arange(8.0) / 2)
    found = estimate_figure(symmetric, clusters)
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 6, symmetric.mean(), sem(symmetric)))
    found = estimate_figure(skewed, clusters)
    low, high = t.interval(0.95, 6, skewed.mean(), sem(skewed))
    assert found.low > low
    assert found.high > high


def test_nearly_all_won_says_no_more_than_all_won() -> None:
    won, names = np.repeat([1.0] * 7 + [15 / 16], 16), [str(i // 16) for i in range(128)]
    found, all_won = estimate_share(won, names), estimate_share(np.ones(128), names)
    # From the drawn photographs' variance alone the lower end were 0.944, as if none could be lost.
    assert found.low < all_won.low
    assert found.low < found.value < found.high < 1


def test_a_level_widens_the_interval() -> None:
    values, clusters = clustered_data(np.random.default_rng(1))
    wide, narrow = (estimate_figure(values, clusters, level=level) for level in (0.001, 0.05))
    assert wide.low < narrow.low < narrow.high < wide.high


def clustered_data(rng: np.random.Generator, clusters: int = 40, size: int = 8) -> tuple[np.ndarray, list[str]]:
    """Measurements with true mean 1, of which those of a photograph are much alike."""
    level = rng.normal(1.0, 1.0, clusters)
    values = (level[:, None] + rng.normal(0, 0.3, (clusters, size))).ravel()
    return values, [f"photograph-{c}" for c in range(clusters) for _ in range(size)]


def test_interval_depends_on_photographs_alone() -> None:
    values, clusters = clustered_data(np.random.default_rng(1))
    once = estimate_figure(values, clusters)
    twice = estimate_figure(np.concatenate([values, values]), clusters + clusters)
    assert (once.value, once.clusters) == (pytest.approx(values.mean()), 40)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_the_interval_of_a_ratio_is_that_of_its_jackknife() -> None:
    rng = np.random.default_rng(0)
    columns = np.stack([rng.gamma(9, 1, 20), rng.gamma(9, 1, 20)], 1)
    clusters = [f"photograph-{i // 2}" for i in range(20)]
    found = estimate_figure(columns, clusters, statistic=lambda c: float(c[:, 0].mean() / c[:, 1].mean()))
    sums = columns.reshape(10, 2, 2).sum(1)
    value = sums[:, 0].sum() / sums[:, 1].sum()
    without = (sums[:, 0].sum() - sums[:, 0]) / (sums[:, 1].sum() - sums[:, 1])
    error = np.sqrt(9 / 10 * ((without - without.mean()) ** 2).sum())
    assert found.value == pytest.approx(value)
    assert (found.high - found.low) / 2 == pytest.approx(2.306 * error, rel=0.05), (
        "the correction shifts more than it widens"
    )


@pytest.mark.parametrize("won", [0.0, 1.0])
def test_all_wins_give_an_interval_that_six_photographs_can_bear(won: float) -> None:
    found = estimate_share(np.full(24, won), [str(i % 6) for i in range(24)])
    # An interval of width 0 would say that no policy ever loses. 0.025 ** (1 / 6) = 0.541.
    ends = (0.541, 1.0) if won else (0.0, 0.459)
    assert (found.value, found.low, found.high) == (won, *(pytest.approx(end, abs=1e-3) for end in ends))


def test_photographs_that_do_not_differ_give_no_interval() -> None:
    photographs = [str(i) for i in range(8)]
    ramp = np.arange(8, dtype=np.float32) / 7
    same = (ramp + np.float32(0.8)) - (ramp + np.float32(0.5))
    assert len(set(same.tolist())) > 1, "apart from rounding"
    ties = estimate_share(np.full(8, 0.5), photographs)
    difference = estimate_figure(same, photographs)
    ratio = estimate_figure(
        np.stack([np.zeros(8), np.arange(1.0, 9)], 1), photographs, statistic=lambda c: c[:, 0].sum() / c[:, 1].sum()
    )
    for found, value in ((ties, 0.5), (difference, 0.3), (ratio, 0.0)):
        assert found.value == pytest.approx(value)
        assert np.isnan([found.low, found.high]).all()


def test_the_interval_of_a_share_lies_between_0_and_1_and_mirrors_that_of_its_rest() -> None:
    won, photographs = np.array([1.0] * 23 + [0.0]), [str(i % 6) for i in range(24)]
    found, rest = estimate_share(won, photographs), estimate_share(1 - won, photographs)
    assert 0 < found.low < found.value < found.high <= 1
    assert (rest.low, rest.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_values_that_are_not_there_count_nowhere() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan, np.inf])
    found = estimate_figure(values, ["a", "a", "b", "c", "d"])
    assert (found.value, found.clusters) == (2.0, 2)
    assert np.isnan(estimate_figure(np.full(3, np.nan), list("abc")).value)


@pytest.mark.parametrize(("photographs", "has_interval"), [(1, False), (5, False), (6, True)])
def test_below_six_photographs_there_is_no_interval_however_many_measurements(
    photographs: int, has_interval: bool
) -> None:
    names = [f"photograph-{i % photographs}" for i in range(60)]
    estimate = estimate_figure(np.arange(60.0), names)
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
    assert estimate_figure(pairs, clusters, statistic=rank_correlation).value == pytest.approx(1.0)
    pairs[0] = 5.0, -5.0
    found = estimate_figure(pairs, clusters, statistic=rank_correlation)
    assert found.low < found.value < found.high


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
