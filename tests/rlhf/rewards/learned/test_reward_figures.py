"""Figures of a reward model against values that were worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rlhf.reports.intervals import estimate_figure, rank_correlation
from rlhf.rewards.learned.reward_figures import (
    HeldOutAnnotations,
    calibration_curve,
    errors_by,
    hole_sizes,
    pair_accuracy_interval,
    rank_by_trust,
)
from rlhf.rewards.learned.uncertainty_figures import LEVELS, coverage_by_level, risk_coverage, selective_risks


def scored(errors: list[float], uncertainty: list[float], **changed: object) -> HeldOutAnnotations:
    """Reward 0 throughout, a prompt and a photograph per two rows."""
    count = len(errors)
    fields = {
        "reward": np.zeros(count),
        "uncertainty": np.array(uncertainty),
        "scores": np.array(errors),
        "keys": [(f"p{i // 2}", i % 2) for i in range(count)],
        "photographs": [f"f{i // 2}" for i in range(count)],
        "sources": ["s"] * count,
        "holes": ["box"] * count,
        "hole_shares": np.array([0.1 + 0.01 * (i // 2) for i in range(count)]),
    }
    return HeldOutAnnotations(**(fields | changed))


def test_selective_risk_is_the_mean_error_of_the_most_certain() -> None:
    risks = selective_risks(np.array([3.0, 1.0, 2.0]), np.array([0.3, 0.1, 0.2]))
    np.testing.assert_allclose(risks, [1.0, 1.5, 2.0])


def test_rows_of_equal_uncertainty_count_as_their_mean_whatever_their_order() -> None:
    errors = np.array([4.0, 0.0, 2.0])
    for turned in (errors, errors[::-1]):
        np.testing.assert_allclose(selective_risks(turned, np.ones(3)), [2.0, 2.0, 2.0])


def test_area_under_the_risk_lies_between_the_oracles_and_that_of_no_order() -> None:
    figures = risk_coverage(scored([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.4, 0.3])).aurc
    assert figures.oracle == pytest.approx((1 + 1.5 + 2 + 2.5) / 4)
    assert figures.model == pytest.approx((1 + 1.5 + 7 / 3 + 2.5) / 4)
    assert figures.random == 2.5
    assert figures.gain.value == pytest.approx(figures.random - figures.model)
    assert figures.gain.clusters == 2


def test_risk_coverage_ends_at_the_mean_error_in_every_order() -> None:
    curve = risk_coverage(scored([1.0, 2.0, 3.0, 4.0, 9.0], [0.1, 0.2, 0.4, 0.3, 0.2])).risk_coverage
    assert curve.shares[-1] == 1.0
    assert curve.model[-1] == pytest.approx(curve.oracle[-1]) == pytest.approx(curve.random[-1])


def test_an_oracle_of_errors_alone_gains_what_can_be_gained() -> None:
    aurc = risk_coverage(scored([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])).aurc
    assert aurc.model == pytest.approx(aurc.oracle)


def test_coverage_is_measured_with_the_multiplier_calibrated_for_its_level() -> None:
    ratios = torch.arange(1.0, 20.0)
    rows = coverage_by_level(ratios, torch.ones(19), scored([4.5, 9.5, 10.5, 18.5], [1.0] * 4))
    assert [row.level for row in rows] == list(LEVELS)
    assert [row.multiplier for row in rows] == list(range(10, 20))
    assert rows[0].coverage.value == 0.5
    assert rows[-1].coverage.value == 1.0
    assert rows[0].width == 20.0


def test_a_level_that_too_few_annotations_calibrate_has_no_figures() -> None:
    rows = coverage_by_level(torch.ones(9), torch.ones(9), scored([0.5], [1.0]))
    measured = {row.level: row.coverage is not None for row in rows}
    assert measured[0.9]
    assert not measured[0.95]
    assert rows[-1].multiplier is None


def test_errors_are_told_apart_by_group_with_their_counts() -> None:
    data = scored([1.0, 3.0, 5.0, 5.0], [1.0] * 4, keys=[("a", 0), ("a", 0), ("b", 0), ("b", 1)])
    rows = errors_by(data, ["x", "x", "y", "y"], np.array([1.0, 0.0, 0.0, 0.0]))
    assert [row.name for row in rows] == ["x", "y"]
    assert [row.error.value for row in rows] == [2.0, 5.0]
    assert [row.coverage.value for row in rows] == [0.5, 0.0]
    assert [(row.annotations, row.candidates, row.photographs) for row in rows] == [(2, 1, 1), (2, 2, 1)]


def test_hole_sizes_are_fifths_of_the_prompts() -> None:
    names = hole_sizes(scored([0.0] * 20, [1.0] * 20))
    assert names[:4] == ["1: 10.0% to 11.0%"] * 4
    assert names[-4:] == ["5: 18.0% to 19.0%"] * 4
    assert len(set(names)) == 5


def test_holes_of_one_size_are_in_one_group() -> None:
    assert set(hole_sizes(scored([0.0] * 20, [1.0] * 20, hole_shares=np.full(20, 0.25)))) == {"3: 25.0%"}


def test_calibration_groups_are_equal_and_ordered_by_reward() -> None:
    reward = np.random.default_rng(0).permutation(np.arange(40.0))
    curve = calibration_curve(scored([0.0] * 40, [1.0] * 40, reward=reward, scores=2 * reward))
    assert [group.reward for group in curve] == [1.5 + 4 * i for i in range(10)]
    assert all(group.score.value == 2 * group.reward for group in curve)


def test_most_and_least_trusted_are_the_ends_of_the_uncertainty_and_never_the_same() -> None:
    data = scored([0.0] * 40, list(np.arange(40.0)), keys=[(f"p{i}", 0) for i in range(40)])
    ends = rank_by_trust(data, conformal=2.0)
    assert [row.uncertainty for row in ends.most] == list(range(8))
    assert [row.uncertainty for row in ends.least] == list(range(39, 31, -1))
    assert ends.least[0].bound == 78.0
    few = rank_by_trust(scored([0.0] * 10, list(np.arange(10.0))), conformal=2.0)
    assert [len(few.most), len(few.least)] == [8, 2]


def test_a_candidate_annotated_twice_is_shown_once_with_its_mean_score() -> None:
    ends = rank_by_trust(scored([1.0, 2.0], [0.1, 0.1], keys=[("a", 0), ("a", 0)]), conformal=1.0)
    assert [(row.score, row.annotations) for row in ends.most] == [(1.5, 2)]
    assert ends.least == []


def test_accuracy_of_pairs_is_resampled_by_photograph() -> None:
    data = scored([0.0, 1.0, 0.0, 1.0], [1.0] * 4, reward=np.array([0.0, 1.0, 1.0, 0.0]))
    accuracy = pair_accuracy_interval(data)
    assert (accuracy.value, accuracy.clusters, accuracy.pairs) == (0.5, 2, 2)
    assert pair_accuracy_interval(scored([1.0, 1.0], [1.0, 1.0])) is None


@pytest.mark.filterwarnings("error")
def test_a_correlation_with_a_constant_has_no_value_and_no_interval() -> None:
    pairs = np.stack([np.ones(8), np.arange(8.0)], 1)
    estimate = estimate_figure(pairs, list("aabbcdef"), statistic=rank_correlation)
    assert all(math.isnan(x) for x in (estimate.value, estimate.low, estimate.high))
