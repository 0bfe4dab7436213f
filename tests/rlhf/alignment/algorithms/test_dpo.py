"""Diffusion-DPO: against its formula written out, its start, the noise of pairs, and a preference that it learns."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_families import small_fill_pipeline, small_sd3_pipeline
from small_learner import align_config, start
from small_parts import FAST, small_config, small_prompts
from small_schedulers import SCHEDULES, random

from rlhf.alignment.algorithms import dpo
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.flux import FluxFill
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.families.stable_diffusion_3 import StableDiffusion3Blend
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import NoisedSamples, RolloutPlan
from rlhf.storage.images import composite

CONFIG = AlignConfig(algorithm="dpo", samples_per_prompt=2, dpo_beta=30.0)
INDEX = torch.tensor([2, 2, 5, 5, 0, 0])


def make_batch(name: str) -> tuple[TrainingBatch, torch.Tensor]:
    """Three pairs, noised, and the outputs that training aims at."""
    schedule = SCHEDULES[name]()
    clean, noise = random(6, 3, 5, 5, seed=0), random(3, 3, 5, 5, seed=1).repeat_interleave(2, dim=0)
    mask = torch.zeros(6, 1, 5, 5, dtype=torch.float64)
    mask[:, :, 1:4, 1:3] = 1
    samples = NoisedSamples(
        condition=torch.zeros(6, 4, 5, 5),
        latent_mask=mask,
        clean_latents=clean,
        latents=schedule.add_noise(clean, noise, INDEX)[None],
        steps=INDEX[None],
        old_prediction=None,
    )
    batch = TrainingBatch(trajectories=samples, advantages=torch.ones(6), trust_weights=torch.ones(6))
    return batch, schedule.target_output(clean, samples.latents[0], INDEX)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_is_the_papers_written_out(name: str) -> None:
    batch, target = make_batch(name)
    output, base = (target + 0.3 * random(6, 3, 5, 5, seed=seed) for seed in (4, 5))
    hole = batch.trajectories.latent_mask[0, 0] > 0

    def error(said: torch.Tensor, b: int) -> float:
        return float(((said[b] - target[b])[:, hole] ** 2).mean())

    margins = [
        -15.0 * ((error(output, b) - error(base, b)) - (error(output, b + 1) - error(base, b + 1))) for b in (0, 2, 4)
    ]
    found = dpo.compute_loss(output, base, batch, 0, SCHEDULES[name](), CONFIG)
    assert float(found.loss) == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3, rel=1e-5)
    assert found.figures["pair_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 3)
    assert found.figures["pair_margin"] == pytest.approx(sum(margins) / 3, rel=1e-5)


def test_the_base_policy_prefers_nothing_and_its_gradient_is_that_of_the_errors_difference() -> None:
    batch, target = make_batch("flow_sde")
    base = target + 0.3 * random(6, 3, 5, 5, seed=5)
    output = base.clone().requires_grad_()
    part = dpo.compute_loss(output, base, batch, 0, SCHEDULES["flow_sde"](), CONFIG)
    assert float(part.loss.detach()) == pytest.approx(math.log(2), rel=1e-6)
    part.loss.backward()
    sign = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64).view(-1, 1, 1, 1)
    expected = 0.5 * 15.0 * sign * 2 * (base - target) * batch.trajectories.latent_mask / 18 / 3
    assert torch.allclose(output.grad, expected, rtol=1e-4, atol=1e-9)


def policy_of(family: ModelFamily) -> Policy:
    for part in family.pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return Policy(family=family, text=family.embed(""), device=torch.device("cpu"), precision="fp32", name="small")


POLICIES: dict[str, Callable[[Path], Policy]] = {
    "sd": lambda small_pipeline: load_policy(small_config(small_pipeline).model, parts={Part.VAE}),
    "flux_fill": lambda _: policy_of(FluxFill(small_fill_pipeline())),
    "sd3_blend": lambda _: policy_of(StableDiffusion3Blend(small_sd3_pipeline(in_channels=16))),
}


def painted(prompts: list[Prompt], red: float) -> torch.Tensor:
    """Each prompt with a flat hole, red or the opposite."""
    colour = torch.tensor([red, 0.0, -red]).view(1, 3, 1, 1)
    images, masks = (torch.stack([getattr(p, part) for p in prompts]) for part in ("image", "mask"))
    return composite(colour.expand_as(images), images, masks)


@pytest.mark.parametrize("name", POLICIES)
def test_both_pictures_of_a_pair_have_one_noise_that_depends_on_its_key_alone(small_pipeline: Path, name: str) -> None:
    policy, prompts = POLICIES[name](small_pipeline), small_prompts(3)
    family = policy.family
    plan = RolloutPlan(num_inference_steps=6, eta=1.0, stochastic_steps=frozenset(), noised_steps=2)
    images = torch.stack([painted(prompts, 0.8), painted(prompts, -0.8)], dim=1).flatten(0, 1)
    keys = [("seed", p.prompt_id) for p in prompts]
    noised = dpo.noise_pairs(policy, prompts, images, plan, keys)
    schedule = family.schedule(6, tuple(noised.latents.shape[-2:]))
    for k in range(2):
        assert torch.equal(noised.steps[k, 0::2], noised.steps[k, 1::2])
        nothing = schedule.add_noise(noised.clean_latents, torch.zeros_like(noised.clean_latents), noised.steps[k])
        noise = noised.latents[k] - nothing
        assert torch.allclose(noise[0::2], noise[1::2], atol=1e-5)
    alone = dpo.noise_pairs(policy, prompts[1:2], images[2:4], plan, keys[1:2])
    assert torch.allclose(alone.latents, noised.latents[:, 2:4], atol=1e-5)
    known = (noised.clean_latents[0::2] - noised.clean_latents[1::2]) * (1 - noised.latent_mask[0::2])
    if family.known_latents(noised.condition) is not None:
        assert float(known.abs().max()) == 0.0, "outside the hole both are the known image"


def test_sampled_holes_turn_to_the_preferred_colour(process_group: None) -> None:
    policy, prompts = policy_of(FluxFill(small_fill_pipeline())), small_prompts(2)
    own = {"algorithm": "dpo", "samples_per_prompt": 2, "trainable": "full", "learning_rate": 3e-3, "dpo_beta": 10.0}
    config = AlignConfig(**FAST | own)
    learner = Learner(policy, config, micro_batches=2, seed=0)

    def redness() -> torch.Tensor:
        plan = RolloutPlan(num_inference_steps=4, eta=0.0, stochastic_steps=frozenset())
        images = rollout(policy, prompts, plan, sample_indices=range(16), seed_key=("test",)).images
        holes = torch.stack([p.mask for p in prompts]).repeat_interleave(16, 0)
        return ((images[:, :1] - images[:, 2:]) * holes).flatten(1).sum(1) / holes.flatten(1).sum(1)

    before, images = redness(), torch.stack([painted(prompts, 0.8), painted(prompts, -0.8)], dim=1).flatten(0, 1)
    figures = []
    for update in range(12):
        plan = dpo.ALGORITHM.plan_rollout(config, update, 0)
        noised = dpo.noise_pairs(policy, prompts * 2, images.repeat(2, 1, 1, 1), plan, [(update, i) for i in range(4)])
        alike = torch.ones(8)
        figures.append(learner.train([TrainingBatch(trajectories=noised, advantages=alike, trust_weights=alike)]))
    assert figures[0]["pair_accuracy"] == 0.0, "the base policy prefers neither"
    assert figures[-1]["pair_accuracy"] == 1.0
    assert "ratio_error" not in figures[0]
    change = redness() - before
    assert float(change.mean()) > 5 * float(change.std()) / len(change) ** 0.5


def test_the_base_model_is_read_though_there_is_no_kl(small_pipeline: Path, process_group: None) -> None:
    config = align_config(small_pipeline, algorithm="dpo", samples_per_prompt=2, kl_weight=0.0)
    learner, prompts = start(small_pipeline, config), small_prompts(4)
    images = torch.stack([painted(prompts, 0.5), painted(prompts, -0.5)], dim=1).flatten(0, 1)
    plan, keys = dpo.ALGORITHM.plan_rollout(config, 0, 0), [("k", i) for i in range(4)]
    noised = dpo.noise_pairs(learner.policy, prompts, images, plan, keys)
    batch = TrainingBatch(trajectories=noised, advantages=torch.ones(8), trust_weights=torch.ones(8))
    figures = learner.train([batch, batch])
    assert figures["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert figures["base_forward_images"] == figures["backward_images"] > 0
