"""What learner rank 0 decides: prompts of an update, what is put aside, who trains on what."""

from pathlib import Path

import pytest
import torch

from actors.coordinator import prompts_of_update, share_out
from actors.messages import BatchShare
from actors.quarantine import PutAside
from rlhf.errors import UserError

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


def test_a_prompt_put_aside_is_replaced_by_one_that_is_not_there_and_stays_so(tmp_path: Path) -> None:
    PutAside(tmp_path).add("p3", "it kills")
    again = PutAside(tmp_path)
    assert again.reasons == {"p3": "it kills"}
    chosen = again.substitute(["p1", "p3", "p2"], IDS, key=(0, 1))
    assert chosen[0::2] == ["p1", "p2"]
    assert chosen[1] not in ("p1", "p2", "p3")
    assert chosen == PutAside(tmp_path).substitute(["p1", "p3", "p2"], IDS, key=(0, 1))
    assert again.substitute(["p1", "p2"], IDS, key=(0, 1)) == ["p1", "p2"]


def test_too_many_prompts_put_aside_end_the_run(tmp_path: Path) -> None:
    aside = PutAside(tmp_path)
    aside.add("p1", "it kills")
    with pytest.raises(UserError, match=r"too few prompts are left.*put_aside\.json"):
        aside.substitute(["p0", "p1"], ["p0", "p1"], key=(0,))


@pytest.mark.parametrize(("batches", "ranks"), [(4, 2), (5, 2), (4, 3), (1, 2)])
def test_any_number_of_ranks_trains_on_the_same_global_batch(batches: int, ranks: int) -> None:
    made = [
        BatchShare(
            trajectories=[],
            images=[],
            advantages=torch.full((2,), i),
            trust_weights=torch.ones(2),
            prompt_ids=(),
            scores={},
        )
        for i in range(batches)
    ]
    shares = share_out(made, ranks)
    assert len({len(share) for share in shares}) == 1, "all ranks make the same number of passes"
    flat = [batch for share in shares for batch in share]
    assert [int(b.advantages[0]) for b in flat if b.weight > 0] == list(range(batches))
    mean = sum(b.weight * float(b.advantages[0]) for b in flat) / len(flat)
    assert mean == pytest.approx(sum(range(batches)) / batches), "DeepSpeed's mean over all passes"
