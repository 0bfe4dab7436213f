"""Rollouts on disk: bit for bit, whole or not at all, of one configuration."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_parts import small_config

from rlhf.alignment.rollout_dump import TENSORS, DumpedBatch, RolloutDump
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.trajectories import Trajectories
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores

ABOUT = {"checksum": "abc", "metrics": {"reward": 0.1 + 0.2, "reward_std_in_group": float("nan")}}
TEXT = TextEmbedding(
    embedding=torch.randn(2, 3, 4), pooled=None, mask=torch.tensor([[True, True, True], [True, False, False]])
)


def batches(count: int = 2) -> list[DumpedBatch]:
    shared = torch.randn(count, 4)
    tensors = {name: torch.randn(3, 2) for name in TENSORS[Trajectories]}
    scores = {
        "model": Scores(reward=torch.randn(4).double(), is_outlying=torch.tensor([True, False, True, True])),
        "a/b": Scores(reward=torch.zeros(4)),
    }
    return [
        DumpedBatch(
            prompt_ids=("p0", f"p{i}"),
            trajectories=Trajectories(**tensors, step_indices=(1, 3), text=TEXT),
            images=torch.full((4, 3, 2, 2), i, dtype=torch.uint8),
            advantages=shared[i],
            trust_weights=shared[i],
            scores=scores,
        )
        for i in range(count)
    ]


def test_an_update_comes_back_bit_for_bit(tmp_path: Path) -> None:
    dump, written = RolloutDump(tmp_path), batches()
    dump.write(0, written, ABOUT)
    read, about = dump.read(0)
    for ours, theirs in zip(read, written, strict=True):
        assert ours.prompt_ids == theirs.prompt_ids
        assert ours.trajectories.step_indices == (1, 3)
        for name in TENSORS[Trajectories]:
            assert torch.equal(getattr(ours.trajectories, name), getattr(theirs.trajectories, name))
        assert ours.trajectories.text is not None
        assert torch.equal(ours.trajectories.text.embedding, TEXT.embedding)
        assert ours.trajectories.text.pooled is None
        assert torch.equal(ours.trajectories.text.counted(), TEXT.counted())
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.advantages, theirs.advantages)
        assert ours.scores.keys() == theirs.scores.keys() == {"model", "a/b"}
        assert ours.scores["model"].reward.dtype == torch.float64
        assert torch.equal(ours.scores["model"].reward, theirs.scores["model"].reward)
        assert ours.scores["model"].uncertainty is None
    assert about["metrics"]["reward"] == 0.1 + 0.2
    assert about["metrics"]["reward_std_in_group"] != about["metrics"]["reward_std_in_group"], "NaN"


def test_rollouts_without_means_come_back_without_them(tmp_path: Path) -> None:
    dump, written = RolloutDump(tmp_path), batches(1)[0]
    dump.write(0, [replace(written, trajectories=replace(written.trajectories, old_mean=None))], ABOUT)
    assert dump.read(0)[0][0].trajectories.old_mean is None


def test_an_update_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    dump = RolloutDump(tmp_path)
    dump.write(0, batches(), ABOUT)

    def cut_off():  # noqa: ANN202
        yield batches()[0]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        dump.write(0, cut_off(), ABOUT)
    assert not dump.has(0)
    with pytest.raises(UserError, match=r"update-000001/update\.json: no whole update"):
        dump.read(0)


@pytest.mark.parametrize("damage", ["missing", "shorter", "turned"])
def test_a_damaged_batch_is_named(tmp_path: Path, damage: str) -> None:
    dump = RolloutDump(tmp_path)
    dump.write(4, batches(), ABOUT)
    path = tmp_path / "update-000005" / "batch-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes({"shorter": data[:-1], "turned": data[:-1] + bytes([data[-1] ^ 1])}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"update-000005/batch-00001\.safetensors"):
        dump.read(4)


def test_rollouts_of_two_configurations_are_not_mixed(small_pipeline: Path, tmp_path: Path) -> None:
    dump, config = RolloutDump(tmp_path), small_config(small_pipeline)
    with pytest.raises(UserError, match=r"config\.yaml: not there"):
        dump.check(config)
    dump.begin(config, resume=False)
    dump.write(0, batches(), ABOUT)
    with pytest.raises(UserError, match="holds rollouts already; add --resume"):
        dump.begin(config, resume=False)
    dump.begin(config, resume=True)
    dump.check(config.model_copy(update={"cluster": config.cluster.model_copy(update={"samplers": 7})}))
    with pytest.raises(UserError, match=r"config\.yaml: these rollouts are of another `align`"):
        dump.begin(small_config(small_pipeline, learning_rate=0.5), resume=True)
