"""`rlhf align` into a bucket, and onto a disk that fills up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from align_runs import figures, policy_tensors
from s3_server import run_s3_server
from small_disk import grow, small_disk
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align
from rlhf.alignment.disk_need import checkpoint_bytes, count_trained
from rlhf.config.config_files import dump_config
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_manifest import list_policies
from rlhf.errors import UserError
from rlhf.storage.url_path import as_path

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(small_pipeline: Path) -> RunConfig:
    return small_config(small_pipeline, updates=4)


@pytest.fixture(scope="module")
def finished(config: RunConfig, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on this machine's disk."""
    out = tmp_path_factory.mktemp("runs") / "run"
    align(config, *inputs, out)
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "8m") as folder:
        yield folder


@pytest.mark.slow
def test_a_run_in_a_bucket_that_was_killed_goes_on_elsewhere_with_the_same_figures(
    config: RunConfig, finished: Path, tmp_path: Path
) -> None:
    with run_s3_server():
        write_prompts(small_prompts(8), as_path("s3://runs/prompts"))
        save_small_reward(as_path("s3://runs/reward"))
        out = as_path("s3://runs/align")
        options = "--prompts s3://runs/prompts --reward s3://runs/reward --out s3://runs/align --config config.yaml"
        command = [sys.executable, "-m", "rlhf", "align", *options.split()]
        for name in ("here", "elsewhere"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.yaml").write_text(dump_config(config))
        driver = subprocess.Popen(command, cwd=tmp_path / "here", stderr=subprocess.DEVNULL)
        while not (out / "learner" / "checkpoint_manager_snapshot.json").is_file():
            assert driver.poll() is None, "the run ended before its first checkpoint"
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert len(figures(out)) < config.align.updates
        resumed = subprocess.run([*command, "--resume"], cwd=tmp_path / "elsewhere", check=False, capture_output=True)
        assert resumed.returncode == 0, resumed.stderr.decode()[-2000:]
        assert figures(out) == figures(finished)
        assert len(list_policies(out)) == len(list_policies(finished)) == config.align.updates
        assert len(list(out.glob("learner/checkpoint-*"))) == config.align.keep_last
        assert len(list(out.glob("grids/*.png"))) == config.align.updates
        (tmp_path / "run" / "policy-000004").mkdir(parents=True)
        for path in (out / "policy-000004").iterdir():
            (tmp_path / "run" / "policy-000004" / path.name).write_bytes(path.read_bytes())
        assert policy_tensors(tmp_path / "run", 4).equal(policy_tensors(finished, 4))
        before = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
        assert before == ["config.yaml"], "nothing of a run in a bucket is left on the local disk"


def test_a_full_disk_ends_the_run_with_a_message_and_the_last_checkpoint_goes_on(
    config: RunConfig, inputs: tuple[Path, Path], finished: Path, disk: Path, capsys: pytest.CaptureFixture
) -> None:
    out = disk / "run"
    checkpoint = sum(path.stat().st_size for path in finished.glob("learner/checkpoint-000004/**/*") if path.is_file())
    policy = sum(path.stat().st_size for path in (finished / "policy-000004").iterdir())
    (disk / "others").write_bytes(bytes(8 * 2**20 - 2 * policy - checkpoint - 2**20 - checkpoint // 2))
    with pytest.raises(UserError, match=rf"{out}: no room.*keep_last.*--resume"):
        align(config, *inputs, out)
    assert [path.name for path in out.glob("learner/checkpoint-*")] == ["checkpoint-000001"]
    assert load_policy(config.model, list_policies(out)[0]).version == 1
    grow(disk, "32m")
    fewer = config.align.model_copy(update={"keep_last": 1, "keep_policies": 2})
    align(config.model_copy(update={"align": fewer}), *inputs, out, resume=True)
    assert figures(out) == figures(finished)
    assert [path.name for path in list_policies(out)] == ["policy-000003", "policy-000004"]
    assert [path.name for path in out.glob("learner/checkpoint-*")] == ["checkpoint-000004"]
    assert "2 checkpoints of" in capsys.readouterr().err, "the need is told before the start"


def test_a_checkpoint_takes_what_was_told(config: RunConfig, finished: Path) -> None:
    size = sum(path.stat().st_size for path in finished.glob("learner/checkpoint-000004/**/*") if path.is_file())
    told = checkpoint_bytes(config.align) * count_trained(config.model.path, config.align)
    assert told <= size <= 1.2 * told + 500_000
