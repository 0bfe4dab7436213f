"""Training on dumped rollouts, and rollouts without training, on this machine's Ray."""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from align_runs import figures, replayed_figures
from safetensors.torch import load_file
from small_parts import small_config

from actors.align import align
from actors.coordinator import SamplingMetrics
from actors.rollouts_only import roll_out
from rlhf.alignment.rollout_dump import RolloutDump
from rlhf.errors import UserError
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def dumped(small_pipeline: Path, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `run`, and in `dump` its rollouts."""
    folder = tmp_path_factory.mktemp("dumped")
    align(small_config(small_pipeline), *inputs, folder / "run", dump=folder / "dump")
    return folder


def images_of(dump: Path, update: int) -> torch.Tensor:
    return torch.cat([batch.images for batch in RolloutDump(dump).read(update)[0]])


def test_a_replay_has_metrics_and_policy_of_the_run_that_dumped(
    small_pipeline: Path, dumped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    align(small_config(small_pipeline), None, None, out, replay=dumped / "dump")
    assert figures(out) == replayed_figures(dumped / "run")
    of_sampling = {field.name for field in fields(SamplingMetrics)}
    assert of_sampling <= read_metrics(dumped / "run")[0].keys()
    assert not of_sampling & read_metrics(out)[0].keys(), "it has no samplers"
    ours, theirs = (load_file(next((r / "policy-000003").glob("*.safetensors"))) for r in (out, dumped / "run"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_replay_of_a_dump_that_is_damaged_or_of_other_settings_names_the_file(
    small_pipeline: Path, dumped: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"dump/config\.yaml: these rollouts are of another `align`"):
        align(small_config(small_pipeline, learning_rate=0.5), None, None, tmp_path / "1", replay=dumped / "dump")
    shutil.copytree(dumped / "dump", tmp_path / "dump")
    (tmp_path / "dump" / "update-000002" / "update.json").unlink()
    with pytest.raises(UserError, match=r"update-000002/update\.json: no whole update"):
        align(small_config(small_pipeline), None, None, tmp_path / "2", replay=tmp_path / "dump")
    shutil.copytree(dumped / "dump", tmp_path / "dump", dirs_exist_ok=True)
    batch = tmp_path / "dump" / "update-000002" / "batch-00001.safetensors"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"update-000002/batch-00001\.safetensors: damaged"):
        align(small_config(small_pipeline), None, None, tmp_path / "3", replay=tmp_path / "dump")
    batch.unlink()
    with pytest.raises(UserError, match=r"update-000002/batch-00001\.safetensors: missing"):
        align(small_config(small_pipeline), None, None, tmp_path / "4", replay=tmp_path / "dump")


def test_rollouts_alone_are_those_of_the_first_weights_and_can_be_gone_on_with(
    small_pipeline: Path, inputs: tuple[Path, Path], dumped: Path, tmp_path: Path
) -> None:
    config, dump = small_config(small_pipeline, updates=3), tmp_path / "dump"
    assert roll_out(config, *inputs, tmp_path / "run", dump) == 3
    assert torch.equal(images_of(dump, 0), images_of(dumped / "dump", 0)), "before any update they are the same"
    assert not torch.equal(images_of(dump, 2), images_of(dumped / "dump", 2))
    abouts = [RolloutDump(dump).read(update)[1] for update in range(3)]
    assert [about["metrics"]["staleness"] for about in abouts] == [0, 1, 2]
    assert len({about["checksum"] for about in abouts}) == 1
    with pytest.raises(UserError, match="holds rollouts already"):
        roll_out(config, *inputs, tmp_path / "run", dump)
    before = images_of(dump, 1)
    (dump / "update-000002" / "update.json").unlink()
    roll_out(config, *inputs, tmp_path / "run", dump, resume=True)
    assert torch.equal(images_of(dump, 1), before)
