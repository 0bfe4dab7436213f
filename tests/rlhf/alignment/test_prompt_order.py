"""The order of prompts over the updates of a run."""

import pytest

from rlhf.alignment.prompt_order import prompts_of_update

IDS = [f"p{i}" for i in range(10)]


def test_every_prompt_is_seen_once_before_any_is_seen_twice() -> None:
    seen = [p for update in range(5) for p in prompts_of_update(IDS, update, 4, 0)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == IDS
    assert seen[:10] != seen[10:]


@pytest.mark.parametrize(("size", "count"), [(10, 4), (48, 32), (7, 7), (9, 8)])
def test_no_prompt_comes_twice_in_an_update_and_all_come_equally_often(size: int, count: int) -> None:
    ids = [f"p{i}" for i in range(size)]
    updates = [prompts_of_update(ids, update, count, 0) for update in range(2 * size)]
    assert all(len(set(chosen)) == len(chosen) == count for chosen in updates)
    seen = [name for chosen in updates for name in chosen]
    assert all(sorted(seen[start : start + size]) == sorted(ids) for start in range(0, len(seen), size))


def test_prompts_depend_on_seed_and_update_alone() -> None:
    assert prompts_of_update(IDS, 7, 4, 0) == prompts_of_update(IDS, 7, 4, 0)
    assert prompts_of_update(IDS, 7, 4, 0) != prompts_of_update(IDS, 7, 4, 1)
