"""`rlhf align` with several rewards on this machine's Ray, with random small networks."""

import json
from pathlib import Path

import pytest
from align_runs import TIMINGS
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import RunConfig
from rlhf.errors import UserError
from rlhf.reports.metrics_log import read_metrics

pytestmark = pytest.mark.ray
WEIGHTS = {"model": 1.0, "seam": 0.5, "mine": 1.0}
FUNCTIONS = """
import torch
def red(images, masks, captions): return images[:, 0].mean((1, 2))
def nan_at_last(images, masks, captions): return torch.cat([images[1:, 0].mean((1, 2)), torch.tensor([torch.nan])])
def breaks(images, masks, captions): raise RuntimeError("no such colour")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "rewards_of_an_align_test.py").write_text(FUNCTIONS)
    reward = save_small_reward(folder / "reward", quantile=0.0)
    return write_prompts(small_prompts(8), folder / "prompts"), reward


def combined(pipeline: Path, inputs: tuple[Path, Path], function: str = "red", **changes: object) -> RunConfig:
    entries = (
        RewardEntry(kind="model"),
        RewardEntry(kind="seam", weight=0.5),
        RewardEntry(
            kind="function", name="mine", function=f"rewards_of_an_align_test:{function}", path=str(inputs[0].parent)
        ),
    )
    return small_config(pipeline, **changes).model_copy(update={"rewards": entries})


def figures(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)]


def test_a_run_climbs_the_sum_and_warns_of_rewards_out_of_distribution(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    align(combined(small_pipeline, inputs), *inputs, whole)
    lines = figures(whole)
    assert len(lines) == 3
    assert all({"rewards/model", "rewards/seam", "rewards/mine", "uncertainty"} <= line.keys() for line in lines)
    assert [line["ood_share"] for line in lines] == [1.0, 1.0, 1.0]
    assert capfd.readouterr().err.count("100% of the rewards are out of distribution") == 1
    scales = json.loads((whole / "reward_scales.json").read_text())
    assert scales.keys() == {"model", "seam", "mine"}
    mean = sum(w * (lines[0][f"rewards/{n}"] - scales[n]["mean"]) / scales[n]["std"] for n, w in WEIGHTS.items())
    assert lines[0]["reward"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_scales_that_it_began_with(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    align(combined(small_pipeline, inputs), *inputs, whole)
    align(combined(small_pipeline, inputs, updates=2), *inputs, parts)
    (parts / "config.yaml").write_text((whole / "config.yaml").read_text())
    align(combined(small_pipeline, inputs), *inputs, parts, resume=True)
    assert figures(parts) == figures(whole)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param(
            "nan_at_last",
            r"^align: the reward of prompt p\d is nan \(reward mine\); update refused$",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "breaks",
            r"^align: reward mine: .*breaks raised RuntimeError: no such colour \(.*, line 5\); "
            r"the update is refused \(prompts p\d, p\d, reward mine\)$",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_reward_that_fails_ends_the_run_with_its_name_and_the_prompts(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path, function: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        align(combined(small_pipeline, inputs, function), *inputs, tmp_path / "run")
    assert read_metrics(tmp_path / "run") == []


@pytest.mark.slow
def test_a_run_without_any_bound_needs_no_reward_folder(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    config = small_config(small_pipeline, updates=1)
    config = config.model_copy(update={"rewards": (RewardEntry(kind="seam"),)})
    align(config, inputs[0], None, tmp_path / "run")
    (line,) = figures(tmp_path / "run")
    assert line["trust_weight"] == 1.0
    assert not {"ood_share", "uncertainty"} & line.keys()


def test_what_is_missing_is_told_before_a_process_starts(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    config = small_config(small_pipeline)
    with pytest.raises(UserError, match="add --reward"):
        align(config, inputs[0], None, tmp_path / "run")
    clip = RewardEntry(kind="clip_score", path="nowhere")
    with pytest.raises(UserError, match=r"prompt p\d has no caption"):
        align(config.model_copy(update={"rewards": (clip,)}), *inputs, tmp_path / "run")
