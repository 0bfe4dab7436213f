"""Where trained rewards are computed: their networks on the scorer's device, heads and scores on the host."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu, is_host, mark_host
from small_checkpoint import SMALL, release_state
from small_parts import save_small_reward, small_prompts

from rlhf.config.reward_entry import RewardEntry
from rlhf.rewards.learned.prefpaint_reward import PrefpaintReward, adopt_prefpaint
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.open_reward import build_reward


def save_release(folder: Path) -> Path:
    torch.save(release_state(), folder / "released.pth")
    torch.save(torch.eye(SMALL["features"]), folder / "V.pt")
    adopt_prefpaint(folder / "released.pth", folder / "V.pt", folder / "reward")
    return folder / "reward"


def host_tensors(model: RewardModel | PrefpaintReward) -> tuple[torch.Tensor, ...]:
    """The tensors of a reward's last layer and its V."""
    if isinstance(model, RewardModel):
        return model.head.weight, model.head.cholesky
    return model.weight, model.bound.inverse, model.bound.factor


FOLDERS = pytest.mark.parametrize("save", [lambda folder: save_small_reward(folder / "reward"), save_release])


@FOLDERS
def test_an_entry_is_scored_on_the_device_and_scores_return(save: Callable[[Path], Path], tmp_path: Path) -> None:
    entry = RewardEntry(kind="model", path=str(save(tmp_path)))
    images, masks = (mark_host(torch.stack([getattr(p, name) for p in small_prompts(4)])) for name in ("image", "mask"))
    expected = build_reward(entry, None, torch.device("cpu")).score(images, masks, [""] * 4)
    with fake_gpu():
        reward = build_reward(entry, None, torch.device("cuda"))
        assert isinstance(reward, RewardModel | PrefpaintReward)
        for tensor in host_tensors(reward):
            mark_host(tensor)
        scores = reward.score(images, masks, [""] * 4)
    for name in (field.name for field in fields(scores) if getattr(scores, field.name) is not None):
        assert is_host(getattr(scores, name)), name
        assert torch.equal(getattr(scores, name), getattr(expected, name)), name


@FOLDERS
def test_the_network_moves_and_the_head_stays(save: Callable[[Path], Path], tmp_path: Path) -> None:
    model = load_reward(save(tmp_path), torch.device("meta"))
    network = model.network if isinstance(model, RewardModel) else model.backbone
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in host_tensors(model)} == {"cpu"}
