"""`rlhf reward --workers`: a worker that dies is started again, and training goes on from its last epoch."""

import contextlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from small_annotations import make_world, write_world

from actors.reward_workers import train_on_workers
from rlhf.config.run_config import RewardConfig
from rlhf.errors import UserError
from rlhf.storage.atomic_files import read_json_lines
from rlhf.workflows.reward_run import RewardRun, run_reward

CONFIG = RewardConfig(feature_dim=12, epochs=60, micro_batch_size=32, decorrelation=1.0, ridge=30.0)


def small_run(folder: Path, name: str) -> RewardRun:
    prompts, candidates, annotations = (Path(p) for p in write_world(folder, *make_world(12)))
    inputs = {"prompts": prompts, "candidates": candidates, "annotations": annotations}
    return RewardRun(**inputs, out=folder / name, config=CONFIG, seed=0)


def test_a_worker_of_another_version_is_refused_with_both(tmp_path: Path) -> None:
    run = replace(small_run(tmp_path, "reward"), version="0.0.9")
    with pytest.raises(UserError, match=r"a worker has prefpaint-ray \S+, this machine 0\.0\.9; install one version"):
        run.open_tables()


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_goes_on_from_its_last_epoch_to_the_reward_of_one(tmp_path: Path) -> None:
    first = small_run(tmp_path, "alone")
    alone = run_reward(first, first.open_tables())
    run = replace(first, out=tmp_path / "together")
    seen: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(run.out, seen), daemon=True)
    killer.start()
    report = train_on_workers(run, 2, None)
    killer.join(5)
    before, after = seen
    assert 5 <= before < CONFIG.epochs
    assert after >= before, "a training that began anew would have fewer epochs"
    assert [figures["epoch"] for figures in report.learning_curve] == list(range(1, CONFIG.epochs + 1))
    for found, expected in zip(report.learning_curve, alone.learning_curve, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert report.calibration.conformal == pytest.approx(alone.calibration.conformal, rel=1e-3)


def kill_a_worker(out: Path, seen: list[int]) -> None:
    """Kills one after five epochs; notes the number of epochs then, and the least that is there afterwards."""
    while epochs_in(out) < 5:
        time.sleep(0.01)
    seen.append(epochs_in(out))
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                break
    least = CONFIG.epochs
    while not (out / "reward.json").is_file():
        least = min(least, epochs_in(out))
        time.sleep(0.01)
    seen.append(least)


def epochs_in(out: Path) -> int:
    return len(read_json_lines(out / "learning_curve.jsonl", {"epoch": int}, ""))
