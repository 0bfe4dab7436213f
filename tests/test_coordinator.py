import pytest
import torch

from actors.coordinator import check_receipts, check_rewards, prompts_of_update
from actors.messages import RolloutReceipt, WeightsNotice
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores


def receipt(**changes: object) -> RolloutReceipt:
    record = {"prompt_ids": ("a", "b"), "version": 3, "checksum": "abc", "duration_s": 1.0}
    return RolloutReceipt(**(record | changes))


def scores(reward: list[float]) -> Scores:
    values = torch.tensor(reward, dtype=torch.float64)
    return Scores(reward=values, uncertainty=torch.ones_like(values), trust_weight=torch.ones_like(values))


def test_every_prompt_is_seen_once_before_any_is_seen_twice() -> None:
    ids = [f"p{i}" for i in range(10)]
    seen = [p for update in range(5) for p in prompts_of_update(ids, update, 4, 0)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == ids
    assert seen[:10] != seen[10:]


def test_prompts_depend_on_seed_and_update_alone() -> None:
    ids = [f"p{i}" for i in range(10)]
    assert prompts_of_update(ids, 7, 4, 0) == prompts_of_update(ids, 7, 4, 0)
    assert prompts_of_update(ids, 7, 4, 0) != prompts_of_update(ids, 7, 4, 1)


@pytest.mark.parametrize("changes", [{"version": 2}, {"checksum": "abd"}])
def test_a_rollout_of_other_weights_is_refused_by_name(changes: dict) -> None:
    notice = WeightsNotice(version=3, weights=[], checksum="abc")
    check_receipts([receipt()], notice)
    with pytest.raises(UserError, match="prompts a, b.*refused"):
        check_receipts([receipt(), receipt(**changes)], notice)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_names_its_prompt(bad: float) -> None:
    good = scores([0, 1, 2, 3])
    check_rewards([{"model": good, "seam": Scores(reward=good.reward)}], [receipt()])
    with pytest.raises(UserError, match="prompt b.*reward seam"):
        check_rewards([{"model": good, "seam": Scores(reward=scores([0, 1, bad, 3]).reward)}], [receipt()])
    with pytest.raises(UserError, match="prompt b.*reward model"):
        check_rewards([{"model": scores([0, 1, bad, 3])}], [receipt()])
