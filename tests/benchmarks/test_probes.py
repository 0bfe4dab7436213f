"""What the probes learn from, and the figures of rewards."""

import numpy as np
import pytest

from benchmarks.probes.fills import degrade, draw_places
from benchmarks.probes.reward_figures import order, within
from rlhf.data.holes import FAMILIES
from rlhf.data.photographs import HELD_OUT
from rlhf.storage.images import decode_image, list_photographs


def test_fills_have_marks_and_the_original_the_highest() -> None:
    photographs = [decode_image(path) for path in list_photographs(HELD_OUT)[:2]]
    places = draw_places(photographs, 10, seed=0)
    assert {place.family for place in places} == set(FAMILIES)
    found = list(degrade(places[0], places[1], np.random.default_rng(0)))
    marks = np.array([own for _, _, own in found])
    assert found[0][0] == "original"
    assert ((marks >= 0) & (marks <= 1)).all()
    assert (marks[0] >= marks).all()
    assert all(fill.shape == places[0].image.shape and fill.isfinite().all() for _, fill, _ in found)


def test_differences_within_a_prompt_leave_its_level_out() -> None:
    assert within(np.array([1.0, 3.0, 10.0]), ["a", "a", "b"]).tolist() == [-1, 1, 0]


def test_pairs_are_of_one_prompt_and_ties_count_half() -> None:
    alike, rows = order(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 3.0, 2.0, 0.0]), ["a", "a", "a", "b"])
    assert sorted(alike.tolist()) == [0.5, 1.0, 1.0]
    assert max(rows) == 2
    alike, _ = order(np.array([1.0, 2.0]), np.array([5.0, 5.0]), ["a", "a"])
    assert alike.tolist() == pytest.approx([]), "equal scores order nothing"
