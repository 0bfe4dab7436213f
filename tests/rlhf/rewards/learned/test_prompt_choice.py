"""Which prompts are annotated first: by their candidates' uncertainty, and by the seed."""

from pathlib import Path

import pytest
import torch
from small_annotations import annotation, write_annotations
from small_parts import save_small_reward
from small_study import write_study

from rlhf.data.annotation.items import load_items
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.prompts import load_prompts
from rlhf.errors import UserError
from rlhf.rewards.learned.prompt_choice import (
    annotated_last,
    choose_candidates,
    choose_prompts,
    order_by_uncertainty,
    order_prompts,
    order_randomly,
    take_prompts,
)


def test_the_prompt_whose_candidates_are_least_certain_on_average_comes_first() -> None:
    uncertainty = {"sure": [0.1, 0.2], "one of two": [0.0, 0.7], "doubtful": [0.5, 0.4, 0.6], "alike": [0.2, 0.1]}
    order = order_by_uncertainty({name: torch.tensor(values) for name, values in uncertainty.items()})
    assert order == ["doubtful", "one of two", "alike", "sure"], "in the order of their names where they are equal"


def test_whole_prompts_fill_the_limit() -> None:
    counts = {"a": 3, "b": 5, "c": 2}
    assert take_prompts(["b", "a", "c"], counts, None) == ["b", "a", "c"]
    assert take_prompts(["b", "a", "c"], counts, 7) == ["b", "c"]
    with pytest.raises(UserError, match="--limit 1 is less than the 2 candidates"):
        take_prompts(["b", "a", "c"], counts, 1)


def test_the_random_order_is_the_seeds_alone() -> None:
    names = [f"p{i}" for i in range(30)]
    assert order_randomly(names, seed=3) == order_randomly(names[::-1], seed=3)
    assert order_randomly(names, seed=3) != order_randomly(names, seed=4)


def test_prompts_of_earlier_rounds_come_last_in_their_order(tmp_path: Path) -> None:
    for folder, names in (("first", "ab"), ("second", "bc")):
        rows = [annotation(name, 0, "simulated-0", 3.0) for name in names]
        write_annotations(rows, tmp_path / folder)
    earlier = [tmp_path / "first", tmp_path / "second"]
    assert annotated_last(["b", "a", "d", "c", "e"], earlier) == ["d", "e", "a", "c", "b"]
    counts = dict.fromkeys("abcde", 2)
    chosen = choose_prompts(counts, None, "random", None, seed=0, limit=4, earlier=earlier)  # type: ignore[arg-type]
    assert set(chosen) == {"d", "e"}


@pytest.mark.parametrize("select", ["random", "uncertain"])
def test_the_page_and_the_simulated_annotators_choose_alike(select: str, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "candidates", prompts=6)
    reward = save_small_reward(tmp_path / "reward") if select == "uncertain" else None
    items = load_items(folder, folder / "prompts")
    for_people = order_prompts(items, select, reward, seed=0, limit=10)
    prompts = {p.prompt_id: p for p in load_prompts(folder / "prompts")}
    chosen = choose_candidates(prompts, CandidateTable(folder, prompts), select, reward, seed=0, limit=10)
    assert tuple(dict.fromkeys(name for name, _ in chosen)) == for_people
    assert len(chosen) == 9, "three whole prompts of three samples"
    with pytest.raises(UserError, match="belong together"):
        order_prompts(items, "random" if reward else "uncertain", reward, seed=0)
