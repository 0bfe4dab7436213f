"""kill -9 of every role of a run and of its driver: the run goes on, with the figures of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from align_runs import lasting_figures, with_cluster
from processes import find_process, wait_for
from small_parts import small_config, small_prompts, write_prompts

from actors.align import align
from actors.telemetry.incidents import read_incidents
from rlhf.config.config_files import dump_config
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import RunConfig
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(small_pipeline: Path) -> RunConfig:
    return with_cluster(small_config(small_pipeline, updates=4), learner_failures=2)


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    align(config, *inputs, out)
    return lasting_figures(out)


def kill_after_first_update(out: Path, *roles: str) -> threading.Thread:
    """Kills a process of each role as soon as there are figures; Ray names processes after their actors."""

    def kill() -> None:
        wait_for(lambda: len(read_metrics(out)) >= 1)
        for role in roles:
            find_process(role).kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_killed_samplers_and_scorers_leave_the_same_figures(
    config: RunConfig, inputs: tuple[Path, Path], undisturbed: list[dict], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killer = kill_after_first_update(out, "RolloutSampler", "RewardScorer")
    align(config, *inputs, out)
    killer.join()
    assert lasting_figures(out) == undisturbed
    assert {(line["role"], line["cause"]) for line in read_incidents(out)} == {("sampler", "died"), ("scorer", "died")}
    assert read_metrics(out)[-1]["restarts"] == 2


def test_a_killed_learner_goes_on_from_its_checkpoint_to_the_same_figures(
    config: RunConfig, inputs: tuple[Path, Path], undisturbed: list[dict], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    killer = kill_after_first_update(out, "RayTrainWorker")
    align(config, *inputs, out)
    killer.join()
    assert lasting_figures(out) == undisturbed
    assert [(line["role"], line["cause"]) for line in read_incidents(out)] == [("learner", "restarted")]


def test_a_killed_driver_resumes_to_the_same_figures(
    config: RunConfig, inputs: tuple[Path, Path], undisturbed: list[dict], tmp_path: Path
) -> None:
    out, settings = tmp_path / "run", tmp_path / "config.yaml"
    settings.write_text(dump_config(config))
    words = ["align", "--prompts", inputs[0], "--reward", inputs[1], "--out", out, "--config", settings]
    driver = subprocess.Popen([sys.executable, "-m", "rlhf", *map(str, words)])
    wait_for(lambda: len(read_metrics(out)) >= 1)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    align(config, *inputs, out, resume=True)
    assert lasting_figures(out) == undisturbed


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_another_number_of_learners_goes_on_with_the_same_global_batch(
    config: RunConfig, inputs: tuple[Path, Path], undisturbed: list[dict], zero_stage: int, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    staged = config.model_copy(update={"align": config.align.model_copy(update={"zero_stage": zero_stage})})
    short = staged.model_copy(update={"align": staged.align.model_copy(update={"updates": 2})})
    align(with_cluster(short, learners=2), *inputs, out)
    (out / "config.yaml").write_text(dump_config(staged))
    align(with_cluster(staged, learners=1), *inputs, out, resume=True)
    assert [line["learners"] for line in read_metrics(out)] == [2, 2, 1, 1]
    for ours, theirs in zip(lasting_figures(out), undisturbed, strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=2e-3)


def test_a_prompt_that_kills_its_scorer_is_quarantined_and_reported(
    config: RunConfig, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "def deadly(images, masks, captions):\n"
        "    if 'poison' in captions:\n"
        "        os._exit(1)\n"
        "    return images.mean((1, 2, 3))\n"
    )
    prompts = [replace(p, caption="poison" if p.prompt_id == "p5" else "fine") for p in small_prompts(8)]
    write_prompts(prompts, tmp_path / "prompts")
    reward = RewardEntry(kind="function", name="deadly", function="deadly:deadly", path=str(tmp_path))
    out = tmp_path / "run"
    align(config.model_copy(update={"rewards": (reward,)}), tmp_path / "prompts", None, out)
    assert list(json.loads((out / "quarantine.json").read_text())) == ["p5"]
    assert read_metrics(out)[-1]["prompts_quarantined"] == 1
    assert len(read_metrics(out)) == 4
