"""The whole of `rlhf align` on this machine's Ray, with random small networks."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from align_runs import figures, policy_tensors, with_cluster
from dashboard_panels import missing_from
from processes import wait_for
from safetensors.torch import load_file
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align, prepare_run_folder
from actors.telemetry.incidents import Incidents
from actors.telemetry.ray_gauges import gauge_name
from actors.telemetry.update_metrics import meaning_of
from rlhf.alignment.run_folder import is_begun
from rlhf.errors import RunInterruptedError, UserError
from rlhf.reports.metrics_log import read_metrics

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_prompts(small_prompts(8), folder / "prompts"), save_small_reward(folder / "reward", quantile=5.0)


@pytest.fixture(scope="module")
def finished(small_pipeline: Path, inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    align(small_config(small_pipeline), *inputs, out)
    return out


def test_a_run_leaves_policies_metrics_events_and_pictures(finished: Path) -> None:
    assert [line["update"] for line in figures(finished)] == [1, 2, 3]
    assert all(line["ratio_error"] <= 1e-6 for line in figures(finished))
    assert len(list(finished.glob("policy-*/manifest.json"))) == 3
    assert len(list(finished.glob("grids/*.png"))) == 3
    assert list((finished / "tensorboard").iterdir())


def test_every_metric_of_the_dashboard_is_a_figure_of_a_run_but_those_of_nft(finished: Path, tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    incidents.add("sampler", "died")
    line = read_metrics(finished)[-1] | incidents.metrics()
    missing = missing_from({f"ray_{gauge_name(name)}" for name in line})
    assert missing == ["ray_rlhf_kl_to_old", "ray_rlhf_prediction_error"]
    assert all(meaning_of(name) for name in line)
    assert 0 < line["weights_sync_s"] <= line["rollout_s"] <= line["update_s"]


def test_one_sampler_and_two_learners_give_the_figures_of_two_and_one(
    small_pipeline: Path, inputs: tuple[Path, Path], finished: Path, tmp_path: Path
) -> None:
    config = with_cluster(small_config(small_pipeline), samplers=1, learners=2)
    align(config, *inputs, tmp_path / "run")
    for ours, theirs in zip(figures(tmp_path / "run"), figures(finished), strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-4)
    ours, theirs = (policy_tensors(run, 1) for run in (tmp_path / "run", finished))
    # Adam's first step is all but the gradient's sign, so rounding may turn the smallest entries.
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99
    first = figures(tmp_path / "run")[0]
    assert first["reward"] == figures(finished)[0]["reward"], "before any update the images are the same bits"


@pytest.mark.slow
def test_colocated_roles_that_take_turns_give_the_figures_of_roles_that_do_not_also_when_resumed(
    small_pipeline: Path, inputs: tuple[Path, Path], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    align(with_cluster(small_config(small_pipeline, updates=2), colocate=True), *inputs, out)
    (out / "config.yaml").write_text((finished / "config.yaml").read_text())
    align(with_cluster(small_config(small_pipeline), colocate=True), *inputs, out, resume=True)
    assert figures(out) == figures(finished)
    assert torch.equal(policy_tensors(out, 3), policy_tensors(finished, 3))


def test_a_signal_saves_the_update_in_work_and_the_resumed_run_equals_the_uninterrupted_one(
    small_pipeline: Path, inputs: tuple[Path, Path], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    rarely = small_config(small_pipeline, checkpoint_every=3)

    def send() -> None:
        wait_for(lambda: is_begun(out))  # Seconds before the first update ends.
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(RunInterruptedError, match=r"1 of 3 updates are saved in .* Go on with: rlhf"):
        align(rarely, *inputs, out)
    sender.join()
    align(rarely, *inputs, out, resume=True)
    assert figures(out) == figures(finished)
    ours, theirs = (load_file(next((r / "policy-000003").glob("*.safetensors"))) for r in (out, finished))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_reward_that_is_not_finite_ends_the_run_with_the_prompts_name(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    """A reward that comes as NaN or infinity from a head whose numbers are finite, but too large."""
    broken = save_small_reward(tmp_path / "reward", scale=1e308)
    with pytest.raises(UserError, match=r"reward of prompt p\d is (nan|-?inf)"):
        align(small_config(small_pipeline), inputs[0], broken, tmp_path / "run")


def test_a_used_folder_is_neither_overwritten_nor_mixed(small_pipeline: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        prepare_run_folder(finished, small_config(small_pipeline), resume=False)
    other = small_config(small_pipeline, learning_rate=0.5)
    with pytest.raises(UserError, match="another configuration"):
        prepare_run_folder(finished, other, resume=True)
    assert json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])["update"] == 1
