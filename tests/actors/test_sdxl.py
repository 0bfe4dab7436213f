"""SDXL inpainting from one end to the other, with a random small pipeline of its classes."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline
from small_parts import (
    prompt_row,
    save_small_reward,
    small_config,
    small_prompts,
    write_prompts,
)

from rlhf.config.run_config import CandidatesConfig, ModelConfig
from rlhf.data.candidate_table import CandidateTable
from rlhf.diffusion.candidates import make_candidates
from rlhf.diffusion.policy import export_policy, load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.sampler import InProcessSampler
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.reports.metrics_log import read_metrics
from rlhf.storage.images import tensor_to_image

PLAN = RolloutPlan(num_inference_steps=3, eta=0.0, stochastic_steps=frozenset())


def images_of(model: Path, adapter: Path | None = None) -> torch.Tensor:
    policy = load_policy(ModelConfig(path=str(model)), adapter)
    return rollout(policy, small_prompts(2), PLAN, sample_indices=[0], seed_key=(0,)).images


def test_the_unet_is_told_what_diffusers_own_pipeline_tells_it(small_xl_pipeline: Path) -> None:
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(small_xl_pipeline)
    told: list[dict] = []
    pipeline.unet.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs), with_kwargs=True)
    prompt = small_prompts(1)[0]
    picture, hole = tensor_to_image(prompt.image), prompt.mask
    pipeline("", image=picture, mask_image=hole, height=32, width=32, num_inference_steps=2, guidance_scale=1.0)
    policy = load_policy(ModelConfig(path=str(small_xl_pipeline)))
    ours = policy.family.text_inputs(policy.text, torch.zeros(1, 4, 8, 8))
    assert ours["added_cond_kwargs"].keys() == told[0]["added_cond_kwargs"].keys()
    torch.testing.assert_close(ours["encoder_hidden_states"], told[0]["encoder_hidden_states"])
    for name, value in ours["added_cond_kwargs"].items():
        torch.testing.assert_close(value, told[0]["added_cond_kwargs"][name].to(value))


def test_candidates_are_made_of_the_holes_alone(small_xl_pipeline: Path, tmp_path: Path) -> None:
    by_id = {p.prompt_id: p for p in small_prompts(3)}
    policy = load_policy(ModelConfig(path=str(small_xl_pipeline)))
    sampler = InProcessSampler(policy, lambda names: [prompt_row(by_id[name]) for name in names])
    config = CandidatesConfig(samples_per_prompt=2, num_inference_steps=(3,))
    assert make_candidates(sampler, dict.fromkeys(by_id, (32, 32)), tmp_path, config, seed=0) == 6
    for (prompt_id, _), image in CandidateTable(tmp_path, by_id).items():
        known = 1 - by_id[prompt_id].mask
        torch.testing.assert_close(image * known, by_id[prompt_id].image * known, atol=1 / 127, rtol=0)


@pytest.mark.ray
@pytest.mark.slow
def test_an_aligned_policy_loads_again_and_paints_otherwise(small_xl_pipeline: Path, tmp_path: Path) -> None:
    from actors.align import align

    prompts, reward = write_prompts(small_prompts(8), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    # Weight averaging would leave the first update all but unseen.
    config = small_config(small_xl_pipeline, updates=1, average_decay=0.0)
    policy = align(config, prompts, reward, tmp_path / "run")
    assert [line["ratio_error"] <= 1e-6 for line in read_metrics(tmp_path / "run")] == [True]
    moved = images_of(small_xl_pipeline, policy)
    assert not torch.equal(moved, images_of(small_xl_pipeline))
    exported = export_policy(config.model, policy, tmp_path / "exported")
    torch.testing.assert_close(images_of(exported), moved, atol=2 / 127, rtol=0)
