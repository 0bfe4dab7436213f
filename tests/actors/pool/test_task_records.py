"""What proves that a sampler holds the published weights, and which rewards are refused."""

from dataclasses import replace

import pytest
import torch

from actors.messages import RolloutTask
from actors.pool.task_records import check_rewards
from actors.weight_sync import WeightsAck, WeightsNotice, find_fault
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores

NOTICE = WeightsNotice(version=3, weights=[], checksum="abc", size_bytes=0, probe=-1.5)


def scores(values: list[float]) -> Scores:
    reward = torch.tensor(values, dtype=torch.float64)
    return Scores(reward=reward, uncertainty=torch.ones_like(reward), trust_weight=torch.ones_like(reward))


def test_an_acknowledgement_is_proof_only_with_version_checksum_and_probe() -> None:
    good = WeightsAck(version=3, checksum="abc", probe=-1.5)
    assert find_fault(good, NOTICE, 1e-6) is None
    for bad in ({"version": 2}, {"checksum": "abd"}, {"probe": -1.49}, {"probe": None}, {"probe": float("nan")}):
        assert find_fault(WeightsAck(**(vars(good) | bad)), NOTICE, 1e-6) is not None
    large = replace(NOTICE, probe=-391.0673522949219)
    assert find_fault(replace(good, probe=-391.0673828125), large, 1e-5) is None, "a step of float32"
    assert find_fault(replace(good, probe=-391.1), large, 1e-5) is not None
    without = WeightsNotice(version=3, weights=[], checksum="abc", size_bytes=0)
    assert find_fault(WeightsAck(version=3, checksum="abc", probe=None), without, 1e-6) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_names_its_prompt(bad: float) -> None:
    plan = RolloutPlan(num_inference_steps=1, eta=1.0, stochastic_steps=frozenset())
    pair = RolloutTask(prompt_ids=("a", "b"), prompts=[], samples_per_prompt=2, plan=plan, seed_key=())
    good = scores([0, 1, 2, 3])
    check_rewards({"model": good, "seam": Scores(reward=good.reward)}, pair)
    with pytest.raises(UserError, match="prompt b.*reward seam"):
        check_rewards({"model": good, "seam": Scores(reward=torch.tensor([0, 1, bad, 3]))}, pair)
    with pytest.raises(UserError, match="prompt b.*reward model"):
        check_rewards({"model": scores([0, 1, bad, 3])}, pair)
