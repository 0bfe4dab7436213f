import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import rlhf
from small_disk import small_disk
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from rlhf.alignment.disk_need import count_trained, describe_disk_need
from rlhf.data.prompts import load_prompts
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_manifest import list_policies
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError
from rlhf.reports.metrics_log import MetricsLog, read_metrics
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.storage.atomic_files import atomic_torch_save, require_room, whole_folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def fill(disk: Path, leave_bytes: int = 0) -> None:
    (disk / "others").write_bytes(bytes(shutil.disk_usage(disk).free - leave_bytes))


def test_a_table_that_does_not_fit_leaves_the_old_one(disk: Path) -> None:
    write_prompts(small_prompts(3), disk / "prompts")
    fill(disk, leave_bytes=8192)
    with pytest.raises(UserError, match=r"prompts.parquet: cannot be written \(.*No space left.*free space"):
        write_prompts(small_prompts(40), disk / "prompts")
    assert len(load_prompts(disk / "prompts")) == 3
    assert [path.name for path in (disk / "prompts").iterdir()] == ["prompts.parquet"]


def test_a_reward_folder_that_does_not_fit_does_not_look_whole(disk: Path) -> None:
    fill(disk, leave_bytes=8192)
    with pytest.raises(UserError, match=r"model.safetensors: cannot be written"):
        save_small_reward(disk / "reward")
    with pytest.raises(UserError, match="not a complete reward folder"):
        load_reward(disk / "reward")


def test_a_policy_that_does_not_fit_leaves_the_earlier_ones(disk: Path, small_pipeline: Path) -> None:
    config = small_config(small_pipeline).model
    policy = load_policy(config)
    make_trainable(policy, "lora", rank=4, targets=("to_q", "to_k", "conv1", "conv2"), seed=0)
    state = trainable_state(policy.network)
    save_policy(policy.family, state, disk / "policy-000001", version=1, trainable="lora", base=config.path)
    fill(disk, leave_bytes=8192)
    with pytest.raises(UserError, match=r"policy-000002: cannot be written \(.*(StorageFull|No space).*free space"):
        save_policy(policy.family, state, disk / "policy-000002", version=2, trainable="lora", base=config.path)
    assert [path.name for path in list_policies(disk)] == ["policy-000001"]
    assert load_policy(config, disk / "policy-000001").version == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_metrics_that_do_not_fit_keep_their_whole_lines(disk: Path) -> None:
    log = MetricsLog(disk, first_update=0)
    log.write({"update": 1, "reward": 0.5})
    fill(disk)
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written"):
        log.write({"update": 2, "note": "x" * 8192})
    assert read_metrics(disk)[0] == {"update": 1, "reward": 0.5}


def test_tensors_that_do_not_fit_are_an_error_of_the_users(disk: Path) -> None:
    fill(disk, leave_bytes=8192)
    with pytest.raises(UserError, match=r"training.pt: cannot be written"):
        atomic_torch_save({"tensor": torch.zeros(100_000)}, disk / "training.pt")
    with (
        pytest.raises(UserError, match=r"disk/run: cannot be written"),
        whole_folder(disk / "run", "manifest.json") as run,
    ):
        torch.save(torch.zeros(100_000), run / "weights.pt")


def test_room_is_asked_for_before_anything_is_written(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.pt").write_bytes(bytes(600_000))
    with pytest.raises(UserError, match=r"disk: no room for 1 MB, 1 MB are free"):
        require_room(disk, tmp_path / "checkpoint")
    require_room(tmp_path, tmp_path / "checkpoint")


def test_a_command_on_a_full_disk_ends_with_code_2_and_no_traceback(disk: Path) -> None:
    fill(disk)
    done = rlhf("prompts", "--images", ".", "--out", disk / "prompts")
    assert done.returncode == 2
    assert f"{disk / 'prompts'}" in done.stderr
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_the_need_is_told_from_the_configuration_alone(small_pipeline: Path, tmp_path: Path, trainable: str) -> None:
    config = small_config(small_pipeline, trainable=trainable, keep_last=2, updates=3)
    policy = load_policy(config.model)
    make_trainable(policy, trainable, rank=4, targets=config.align.lora_targets, seed=0)
    trained = sum(tensor.numel() for tensor in trainable_state(policy.network).values())
    assert count_trained(str(small_pipeline), config.align) == trained
    line = describe_disk_need(config, tmp_path)
    assert "3 checkpoints" in line
    assert "3 policies" in line
    assert "are free" in line
