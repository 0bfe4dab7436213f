"""Pairs that annotators ordered: which there are, and the pictures that belong to them."""

from pathlib import Path

import pytest
import torch
from small_annotations import annotation, make_world, write_annotations, write_world

from rlhf.data.preferred_pairs import PairTable, find_pairs
from rlhf.errors import UserError


def test_pairs_are_those_that_one_annotator_ordered_by_means_over_rounds() -> None:
    rows = [
        annotation("a", 0, "anna", 3.0),
        annotation("a", 1, "anna", 5.0),
        annotation("a", 1, "anna", 1.0),  # a second round: 3.0 on average, as sample 0
        annotation("a", 2, "anna", 4.0),
        annotation("a", 0, "bert", 6.0),  # bert judged no other sample
        annotation("b", 0, "anna", 9.0),  # of another prompt
    ]
    assert [pair.name for pair in find_pairs(rows)] == ["a 2>0 anna", "a 2>1 anna"]


@pytest.fixture
def world(tmp_path: Path) -> tuple[list[Path], dict, dict]:
    prompts, candidates, annotations = make_world(photographs=4)
    return [Path(p) for p in write_world(tmp_path, prompts, candidates, annotations)], prompts, candidates


def test_a_pairs_pictures_come_with_their_prompt_better_first(world: tuple) -> None:
    folders, originals, candidates = world
    table = PairTable(*folders)
    names = [table.names[i] for i in (0, 40, 7)]
    prompts, images = table.read(names)
    for pair, name in enumerate(names):
        prompt_id, order, _ = name.split(" ")
        assert prompts[pair].prompt_id == prompt_id
        for place, sample in enumerate(order.split(">")):
            torch.testing.assert_close(images[2 * pair + place], candidates[prompt_id, int(sample)], atol=0.01, rtol=0)
        hole = originals[prompt_id].mask.expand(3, -1, -1) > 0
        better, worse = (images[2 * pair + place][hole].mean() for place in range(2))
        assert better > worse - 0.3, "brighter holes score higher, but for the annotators' noise"


def test_a_judged_candidate_without_picture_is_named(world: tuple, tmp_path: Path) -> None:
    folders, _, _ = world
    write_annotations([annotation("photograph-01", s, "anna", s % 7) for s in (3, 99)], tmp_path / "more")
    with pytest.raises(UserError, match="no sample 99 of prompt photograph-01"):
        PairTable(*folders[:2], tmp_path / "more")


def test_annotations_that_order_nothing_are_refused(world: tuple, tmp_path: Path) -> None:
    folders, _, _ = world
    write_annotations([annotation("photograph-01", s, "anna", 2.0) for s in (0, 1)], tmp_path / "equal")
    with pytest.raises(UserError, match="no annotator gave two candidates of a training prompt"):
        PairTable(*folders[:2], tmp_path / "equal")
