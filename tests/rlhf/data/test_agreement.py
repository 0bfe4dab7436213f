"""Agreement against textbook values."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.data.agreement import interval_alpha, measure_agreement, measure_consistency, weighted_kappa, write_agreement

KRIPPENDORFF_2011 = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
"""Four observers, twelve units: example C of "Computing Krippendorff's Alpha-Reliability" (2011)."""


def row(annotator: str, image: int, value: float, round_: int = 0) -> dict:
    marks = {"structure": value, "texture": value, "overall": value}
    return {
        "annotator": annotator,
        "prompt_id": "p",
        "sample_index": image,
        "round": round_,
        "is_simulated": False,
        **marks,
    }


def test_alpha_of_the_published_example_is_the_published_one() -> None:
    rows = [
        row(f"observer {i}", image, value)
        for i, values in enumerate(KRIPPENDORFF_2011)
        for image, value in enumerate(values)
        if value is not None
    ]
    figures = measure_agreement(rows)
    assert figures["krippendorff_alpha"]["overall"] == pytest.approx(0.849, abs=5e-4)
    assert figures["images_scored_by_several"] == 11
    assert figures["annotators"] == 4


def test_alpha_of_two_observers_is_that_of_the_published_interval_formula() -> None:
    marks = np.array([[1.0, 2, 3, 3], [1, 2, 4, np.nan]])
    # Pairable marks 1 1 2 2 3 4 (n = 6): the squared differences sum to 41 over the 15 pairs, to 1 within images.
    assert interval_alpha(marks) == pytest.approx(1 - (1 / 3) / (41 / 15))


def test_a_persons_repeats_do_not_count_as_another_person() -> None:
    rows = [row("a", 0, 1.0), row("a", 0, 7.0, round_=1), row("a", 1, 2.0)]
    assert measure_agreement(rows)["krippendorff_alpha"]["overall"] is None


@pytest.mark.parametrize("rows", [[], [row("a", 0, 3.0)], [row("a", 0, 3.0), row("b", 0, 3.0)]])
def test_alpha_is_null_where_it_is_undefined(tmp_path: Path, rows: list[dict]) -> None:
    write_agreement(rows, tmp_path)
    assert json.loads((tmp_path / "agreement.json").read_text())["krippendorff_alpha"]["structure"] is None


def test_weighted_kappa_of_a_table_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 8, (200, 2)).astype(float)
    marks[:120, 1] = marks[:120, 0]
    observed = np.zeros((8, 8))
    for first, second in marks.astype(int):
        observed[first, second] += 1 / len(marks)
    weights = (np.arange(8)[:, None] - np.arange(8)) ** 2 / 49
    expected = np.outer(observed.sum(1), observed.sum(0))
    assert weighted_kappa(marks) == pytest.approx(1 - (weights * observed).sum() / (weights * expected).sum())


def test_consistency_compares_a_persons_two_rounds() -> None:
    rows = [row("a", 0, 2.0), row("a", 0, 3.0, 1), row("a", 1, 6.0), row("a", 1, 6.0, 1), row("a", 2, 5.0)]
    figures = measure_consistency(rows)
    assert figures["images"] == 2
    assert figures["mean_absolute_difference"]["overall"] == pytest.approx(0.5)
    assert 0.8 < figures["weighted_kappa"]["overall"] < 1
    assert measure_consistency(rows[:1])["weighted_kappa"]["overall"] is None


def test_alpha_is_one_minus_observed_over_expected_disagreement_pair_by_pair() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        marks = rng.integers(1, 8, (4, 12)).astype(float)
        marks[rng.random(marks.shape) < 0.4] = np.nan
        images = [[float(m) for m in image if not np.isnan(m)] for image in marks.T]
        images = [image for image in images if len(image) >= 2]
        everything = [m for image in images for m in image]
        n = len(everything)
        observed = sum((a - b) ** 2 / (len(image) - 1) for image in images for a in image for b in image) / n
        expected = sum((a - b) ** 2 for a in everything for b in everything) / (n * (n - 1))
        assert interval_alpha(marks) == pytest.approx(1 - observed / expected, rel=1e-12)
