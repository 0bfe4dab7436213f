"""Every family paints what diffusers' own class paints, and its rollouts are replayed."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, NEGATIVE, SCALE, FamilyCase
from family_painting import SIZES, EncodedByMode, noise_for, paint, paint_by_class, policy_of, prompt_of

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.denoising import keep_known
from rlhf.diffusion.families.family import ModelFamily, TextEmbedding, cells_of, tile_sizes
from rlhf.diffusion.families.open_family import check_sizes, read_sides
from rlhf.diffusion.families.stable_diffusion import StableDiffusion
from rlhf.diffusion.policy import TrueGuidance
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.steps.step_rule import transition_log_prob
from rlhf.diffusion.trajectories import RolloutPlan, Trajectories
from rlhf.errors import UserError


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest) -> tuple[FamilyCase, Any]:
    case = CASES[request.param]
    pipeline = case.build()
    pipeline.vae.encode = EncodedByMode(pipeline.vae)
    return case, pipeline


@pytest.mark.parametrize("number", range(len(SIZES)), ids=["x".join(map(str, size)) for size in SIZES])
def test_deterministic_steps_paint_what_the_pipelines_own_class_paints(
    built: tuple[FamilyCase, Any], number: int
) -> None:
    """Every other mask is soft."""
    case, pipeline = built
    family, prompt = case.wrap(pipeline), prompt_of(*SIZES[number], seed=number, is_soft=number % 2 == 1)
    ours = paint(policy_of(family), prompt, noise_for(family, prompt, seed=1), "a cat", steps=4)
    theirs = paint_by_class(case, pipeline, prompt, "a cat", steps=4, seed=1)
    torch.testing.assert_close(as_compared(case, family, ours), theirs, atol=1e-4, rtol=0)


def test_the_sizes_that_a_pipeline_takes_are_read_from_its_configuration_alone(
    built: tuple[FamilyCase, Any], tmp_path: Path
) -> None:
    case, pipeline = built
    family = case.wrap(pipeline)
    pipeline.save_config(tmp_path)
    for part in ("vae", family.network_name):
        getattr(pipeline, part).save_config(tmp_path / part)
    step = family.sides.step_px
    assert read_sides(tmp_path) == family.sides
    config = ModelConfig(path=str(tmp_path))
    check_sizes(config, {"a": (step, 3 * step)})
    with pytest.raises(UserError, match=f"prompt b: is {2 * step + 1}x{step} px, and .* paints multiples of {step} px"):
        check_sizes(config, {"a": (step, step), "b": (step, 2 * step + 1)})
    with pytest.raises(UserError, match=f"multiples of {step} px"):
        family.encode_prompts([prompt_of(2 * step + 1, step, seed=0)])


@pytest.mark.parametrize(("width", "height"), [(64, 64), (48, 80)])
def test_true_guidance_paints_what_the_pipelines_own_class_paints(
    built: tuple[FamilyCase, Any], width: int, height: int
) -> None:
    case, pipeline = built
    if case.guided is None:
        pytest.skip("the class has no second pass")
    family, prompt = case.wrap(pipeline), prompt_of(width, height, seed=1)
    text = NEGATIVE if "negative_prompt" in case.guided else ""
    negative = family.embed(text)
    noise = noise_for(family, prompt, seed=1)
    ours = paint(
        policy_of(family, TrueGuidance(scale=SCALE, negative=negative, text=text)), prompt, noise, "a cat", steps=3
    )
    theirs = paint_by_class(case, pipeline, prompt, "a cat", steps=3, seed=1, **case.guided)
    torch.testing.assert_close(as_compared(case, family, ours), theirs, atol=1e-4, rtol=0)
    assert float((ours - paint(policy_of(family), prompt, noise, "a cat", steps=3)).abs().max()) > 1e-3


def as_compared(case: FamilyCase, family: ModelFamily, latents: torch.Tensor) -> torch.Tensor:
    return (family.decode(latents) / 2 + 0.5).clamp(0, 1) if case.is_decoded else latents


def test_trajectories_are_replayed_and_keep_what_is_known(built: tuple[FamilyCase, Any]) -> None:
    """Stored next latents are draws of the policy; the latents before a blending step hold the known image.

    The prompts have texts of their own, and guidance where the class has it.
    """
    case, pipeline = built
    family = case.wrap(pipeline)
    prompts = [replace(prompt_of(64, 64, seed), caption="a cat" * seed) for seed in range(2)]
    guidance = TrueGuidance(scale=SCALE, negative=family.embed(NEGATIVE), text=NEGATIVE) if case.guided else None
    policy = policy_of(family, guidance)
    plan = RolloutPlan(num_inference_steps=4, eta=1.0, stochastic_steps=frozenset({0, 1, 2}), trained_steps=(0, 1, 2))
    rolled = rollout(policy, prompts, plan, sample_indices=range(2), seed_key=(0,))
    kept = rolled.trajectories
    assert isinstance(kept, Trajectories)
    schedule, known = family.schedule(4, cells_of(kept.latents)), family.known_latents(kept.condition)
    start = kept.latents[0]
    for k in range(3):
        index = kept.steps_at(k)
        output = policy.predict(kept.latents[k], schedule.timesteps[index], kept.condition, kept.text)
        transition = schedule.transition(output, kept.latents[k], index, 1.0)
        again = transition_log_prob(transition, kept.next_latents[k], kept.latent_mask)
        torch.testing.assert_close(again, kept.old_log_prob[k], atol=1e-5, rtol=0)
        if k < 2:
            expected = keep_known(kept.next_latents[k], known, start, schedule, index)
            assert torch.equal(kept.latents[k + 1], expected)
        if k < 2 and known is not None:
            hole, clean = known
            noised, outside = schedule.add_noise_after(clean, start, index), hole.expand_as(start) == 0
            assert torch.equal(kept.latents[k + 1][outside], noised[outside])
    for i, image in enumerate(rolled.images):
        outside = prompts[i // 2].mask.expand_as(image) == 0
        assert torch.equal(image[outside], prompts[i // 2].image[outside]), "known pixels survive to the bit"


@torch.no_grad()
def test_images_of_a_batch_have_texts_and_times_of_their_own(built: tuple[FamilyCase, Any]) -> None:
    """Texts of different lengths are joined, and what fills up the shorter one changes nothing."""
    case, pipeline = built
    family, prompts = case.wrap(pipeline), [prompt_of(64, 64, seed) for seed in range(2)]
    condition, _ = family.encode_prompts(prompts)
    noise = torch.cat([noise_for(family, prompt, seed=i) for i, prompt in enumerate(prompts)])
    texts, times = [family.embed(text) for text in ("a cat", "grass and a long wall")], torch.tensor([900.0, 100.0])
    joined = family.predict(family.network, noise, times, condition, TextEmbedding.join(texts), "fp32")
    for i in range(2):
        alone = family.predict(family.network, noise[[i]], times[[i]], condition[[i]], texts[i], "fp32")
        torch.testing.assert_close(joined[[i]], alone, atol=1e-5, rtol=1e-4)


def test_pictures_are_painted_at_sizes_that_the_family_takes_and_of_many_shapes_unless_it_saw_squares_alone(
    built: tuple[FamilyCase, Any],
) -> None:
    case, pipeline = built
    family = case.wrap(pipeline)
    sizes, native = tile_sizes(family), family.native_px
    assert (native, native) in sizes
    assert all(family.sides.take(*size) and math.prod(size) <= native**2 for size in sizes)
    is_first = isinstance(family, StableDiffusion) and not hasattr(pipeline, "text_encoder_2")
    assert (len(sizes) == 1) is is_first


def test_gradient_checkpointing_changes_no_prediction(built: tuple[FamilyCase, Any]) -> None:
    """A network of diffusers may leave arguments away where it checkpoints, which samplers never do."""
    case, pipeline = built
    family, prompts = case.wrap(pipeline), [prompt_of(64, 64, seed) for seed in range(2)]
    condition, _ = family.encode_prompts(prompts)
    noise = torch.cat([noise_for(family, prompt, seed=i) for i, prompt in enumerate(prompts)])
    texts = TextEmbedding.join([family.embed(text) for text in ("a cat", "grass and a long wall")])
    given = (family.network, noise.requires_grad_(), torch.tensor([900.0, 100.0]), condition, texts, "fp32")
    expected = family.predict(*given).detach()
    family.network.enable_gradient_checkpointing()
    checkpointed = family.predict(*given)
    family.network.disable_gradient_checkpointing()
    assert torch.equal(checkpointed.detach(), expected)
