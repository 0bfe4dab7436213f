"""Checkpoints: nothing in them runs, and a damaged file is named."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from pickled_commands import Command
from small_learner import align_config, batches, sampler_policy, start
from small_parts import small_config

from rlhf.alignment.learner import Learner
from rlhf.alignment.training_checkpoint import (
    RAYS_LIST,
    check_files,
    check_list,
    plain_types,
    record_files,
    saved_ranks,
)
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import load_policy
from rlhf.errors import UserError
from rlhf.storage.tensor_files import tensors_only

pytestmark = pytest.mark.usefixtures("process_group")


def save_trained(pipeline: Path, config: AlignConfig, folder: Path) -> Learner:
    learner = start(pipeline, config)
    learner.train(batches(sampler_policy(pipeline, config, learner.weights()), config))
    folder.mkdir()
    learner.save(folder, 1)
    return learner


def start_resized(pipeline: Path, config: AlignConfig) -> Learner:
    return Learner(load_policy(small_config(pipeline).model), config, micro_batches=2, seed=0, is_resized=True)


@pytest.fixture(scope="module")
def checkpoint(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "stage1"
    save_trained(small_pipeline, align_config(small_pipeline, zero_stage=1), folder)
    return folder


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.pt"))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_no_file_of_a_doctored_checkpoint_runs_anything(small_pipeline: Path, tmp_path: Path, zero_stage: int) -> None:
    config, saved, trace = align_config(small_pipeline, zero_stage=zero_stage), tmp_path / "saved", tmp_path / "trace"
    save_trained(small_pipeline, config, saved)
    learner = start(small_pipeline, config)
    assert len(tensor_files(saved)) == (1 if zero_stage == 0 else 2)
    for number, file in enumerate(tensor_files(saved)):
        doctored = tmp_path / f"doctored{number}"
        shutil.copytree(saved, doctored)
        target = doctored / file.relative_to(saved)
        state = torch.load(file, weights_only=False, map_location="cpu")
        torch.save(state | {"extra": Command(f"touch {trace}")}, target)
        record_files(doctored, 0, 1)  # Whoever doctors a file can write its checksum as well.
        with pytest.raises(UserError, match=rf"{target}: holds more than tensors"):
            learner.load(doctored)
        assert not trace.exists()
    assert learner.load(saved) == 1


def test_a_doctored_checkpoint_runs_nothing_while_it_is_turned_for_other_ranks(
    small_pipeline: Path, copied: Path, tmp_path: Path
) -> None:
    learner, trace = start_resized(small_pipeline, align_config(small_pipeline, zero_stage=1)), tmp_path / "trace"
    torch.save({"module": Command(f"touch {trace}")}, tensor_files(copied)[1])
    record_files(copied, 0, 1)
    with pytest.raises(UserError, match="holds more than tensors"):
        learner.load(copied)
    assert not trace.exists()


def test_deepspeed_itself_cannot_load_more_than_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and DeepSpeed's reading another file may take the place of the checked one."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    trace = tmp_path / "trace"
    torch.save({"module": Command(f"touch {trace}")}, tmp_path / "a.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with tensors_only(plain_types()), pytest.raises(pickle.UnpicklingError):
        TorchCheckpointEngine().load(str(tmp_path / "a.pt"))
    assert not trace.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_checkpoint_turned_for_other_ranks_holds_the_same_weights(small_pipeline: Path, tmp_path: Path) -> None:
    config = align_config(small_pipeline, zero_stage=1)
    before = save_trained(small_pipeline, config, tmp_path / "saved")
    after = start_resized(small_pipeline, config)
    assert after.load(tmp_path / "saved") == 1
    for name, tensor in before.weights().items():
        torch.testing.assert_close(after.weights()[name], tensor, rtol=0, atol=0)
        assert torch.equal(after.averaged[name], before.averaged[name])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("damage", ["flipped bit", "cut", "missing", "additional"])
def test_a_damaged_file_is_named(copied: Path, damage: str, number: int) -> None:
    check_files(copied)
    file = tensor_files(copied)[number]
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        file = file.with_name(f"{number}_optim_states.pt")
        file.write_bytes(content)
    with pytest.raises(UserError, match=str(file)):
        check_files(copied)


def test_each_rank_records_its_own_files(copied: Path) -> None:
    """Files of two ranks lie in one folder, as Ray Train merges them."""
    (copied / "rank-0.json").unlink()
    for rank, file in enumerate(tensor_files(copied)):
        part = copied.parent / f"part{rank}"
        (part / "learner").mkdir(parents=True)
        shutil.copy(file, part / "learner" / file.name)
        record_files(part, rank, 2)
        shutil.copy(part / f"rank-{rank}.json", copied)
    assert saved_ranks(copied) == 2
    check_files(copied)
    (copied / "rank-1.json").unlink()
    with pytest.raises(UserError, match=str(copied / "rank-1.json")):
        check_files(copied)


@pytest.mark.parametrize("text", ["", "[1]", '{"ranks": 0, "files": {}}', '{"ranks": 1, "files": ["a"]}', "\0\0"])
def test_a_damaged_record_is_named(copied: Path, text: str) -> None:
    (copied / "rank-0.json").write_text(text)
    with pytest.raises(UserError, match=str(copied / "rank-0.json")):
        saved_ranks(copied)


def test_a_record_of_a_newer_version_is_refused(copied: Path) -> None:
    record = json.loads((copied / "rank-0.json").read_text())
    (copied / "rank-0.json").write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(UserError, match="newer"):
        check_files(copied)


LISTED = '{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint-1", "metrics": {}}]}'


def test_a_list_of_present_checkpoints_is_accepted(tmp_path: Path) -> None:
    check_list(tmp_path)
    (tmp_path / "learner" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "learner" / RAYS_LIST).write_text(LISTED)
    check_list(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"checkpoint_results": [1]}', '{"checkpoint_results": 1}', "{}", LISTED]
)
def test_a_damaged_list_of_checkpoints_and_a_missing_checkpoint_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / RAYS_LIST).write_text(text)
    with pytest.raises(UserError, match="checkpoint-1: is missing" if text == LISTED else f"{RAYS_LIST}: "):
        check_list(tmp_path)
