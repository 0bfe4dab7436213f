"""Runs of `rlhf align` by the algorithms besides grpo: any number of workers, dumps, staleness, other ranks."""

import math
from pathlib import Path

import pytest
import torch
from align_runs import figures, policy_tensors, replayed_figures, with_cluster
from small_annotations import make_world, write_world
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align
from rlhf.alignment.rollout_dump import RolloutDump
from rlhf.diffusion.trajectories import NoisedSamples

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # a minute and more each


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_prompts(small_prompts(8), folder / "prompts"), save_small_reward(folder / "reward")


@pytest.mark.parametrize("algorithm", ["nft", "mixgrpo"])
def test_one_sampler_and_two_learners_give_the_figures_of_two_and_one(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path, algorithm: str
) -> None:
    config = small_config(small_pipeline, algorithm=algorithm, updates=2 if algorithm == "nft" else 1)
    align(config, *inputs, tmp_path / "two", dump=tmp_path / "dump")
    align(with_cluster(config, samplers=1, learners=2), *inputs, tmp_path / "one")
    two, one = figures(tmp_path / "two"), figures(tmp_path / "one")
    assert one[0]["reward"] == two[0]["reward"], "before any update the images are the same bits"
    for ours, theirs in zip(one, two, strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-4)
        for name in ("sampler_forward_images", "base_forward_images", "backward_images"):
            assert ours[name] == theirs[name] > 0
        assert max(ours.get(name, 0.0) for name in ("ratio_error", "prediction_error")) <= 1e-6
    tensors = [policy_tensors(tmp_path / name, 1) for name in ("one", "two")]
    assert torch.nn.functional.cosine_similarity(*tensors, dim=0) > 0.99
    batch = RolloutDump(tmp_path / "dump").read(0)[0][0]
    assert isinstance(batch.trajectories, NoisedSamples) == (algorithm == "nft")


def test_nft_is_replayed_and_goes_on_stale_and_with_other_ranks(
    small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    config = small_config(small_pipeline, algorithm="nft", max_staleness=1, zero_stage=1, updates=3)
    align(config, *inputs, tmp_path / "run", dump=tmp_path / "dump")
    assert [line["staleness"] for line in figures(tmp_path / "run")] == [0, 1, 1]
    align(config, None, None, tmp_path / "replay", replay=tmp_path / "dump")
    assert figures(tmp_path / "replay") == replayed_figures(tmp_path / "run")
    short = small_config(small_pipeline, algorithm="nft", zero_stage=1, updates=1)
    align(short, *inputs, tmp_path / "resized")
    saved = tmp_path / "resized" / "config.yaml"
    saved.write_text(saved.read_text().replace("updates: 1", "updates: 2"))
    longer = small_config(small_pipeline, algorithm="nft", zero_stage=1, updates=2)
    align(with_cluster(longer, learners=2), *inputs, tmp_path / "resized", resume=True)
    straight = tmp_path / "straight"
    align(longer, *inputs, straight)
    ours, theirs = figures(tmp_path / "resized"), figures(straight)
    assert ours[1]["prediction_error"] <= 1e-6, "the old policy came through the universal checkpoint"
    assert ours[1]["reward"] == pytest.approx(theirs[1]["reward"], abs=1e-4)
    tensors = [policy_tensors(run, 2) for run in (tmp_path / "resized", straight)]
    assert torch.nn.functional.cosine_similarity(*tensors, dim=0) > 0.99


def test_dpo_trains_on_annotated_pairs_with_any_number_of_learners_and_goes_on(
    small_pipeline: Path, tmp_path: Path
) -> None:
    prompts, candidates, annotations = map(Path, write_world(tmp_path, *make_world(4)))
    folders = {"candidates": candidates, "annotations": annotations}
    config = small_config(small_pipeline, algorithm="dpo", samples_per_prompt=2, prompts_per_update=8, updates=2)
    align(config, prompts, None, tmp_path / "one", **folders)
    align(with_cluster(config, learners=2), prompts, None, tmp_path / "two", **folders)
    one, two = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert one[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert one[1]["pair_margin"] == pytest.approx(two[1]["pair_margin"], rel=1e-2)
    tensors = [policy_tensors(tmp_path / name, 2) for name in ("one", "two")]
    assert torch.nn.functional.cosine_similarity(*tensors, dim=0) > 0.99
    policy = tmp_path / "one" / "policy-000002"
    online = small_config(small_pipeline, updates=1)
    align(online, prompts, save_small_reward(tmp_path / "reward"), tmp_path / "after", start=policy)
    assert figures(tmp_path / "after")[0]["ratio_error"] <= 1e-6
