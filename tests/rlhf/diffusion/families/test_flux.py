from dataclasses import replace

import pytest
import torch
from family_painting import SIZES, encode_by_mode, paint, prompt_of
from small_families import CHANNELS, small_fill_pipeline, small_flux_inpaint_pipeline

from rlhf.diffusion.denoising import keep_known
from rlhf.diffusion.families.blending import extend_into_hole, hole_cells
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.families.flux import Flux, FluxBlend, FluxFill
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.steps.step_rule import transition_log_prob
from rlhf.diffusion.trajectories import RolloutPlan, Trajectories
from rlhf.errors import UserError


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("kind", [FluxFill, FluxBlend])
def test_deterministic_steps_paint_what_the_pipelines_own_class_paints(
    kind: type[Flux], width: int, height: int
) -> None:
    pipeline = small_fill_pipeline() if kind is FluxFill else small_flux_inpaint_pipeline()
    prompt = prompt_of(width, height, seed=width + height)
    noise = torch.randn(1, CHANNELS, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    family = kind(pipeline, guidance=7.5)
    ours = family.decode(paint(family, prompt, noise, "a cat", steps=3))
    encode_by_mode(pipeline)
    is_fill = kind is FluxFill
    image = prompt.image[None] if is_fill else extend_into_hole(prompt.image[None], prompt.mask[None])
    theirs = pipeline(
        "a cat",
        image=image / 2 + 0.5,
        mask_image=prompt.mask[None],
        width=width,
        height=height,
        strength=1.0,
        num_inference_steps=3,
        guidance_scale=7.5,
        latents=pipeline._pack_latents(noise, 1, CHANNELS, height // 8, width // 8) if is_fill else noise,
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        output_type="pt",
    ).images
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=0)


def test_a_blending_trajectory_is_replayed_and_keeps_the_known_latents() -> None:
    """Stored next latents are draws of the policy in the hole; the latents before each step hold the known image."""
    family, prompts = FluxBlend(small_flux_inpaint_pipeline()), [prompt_of(64, 64, seed) for seed in range(2)]
    policy = Policy(family=family, text=family.embed(""), device=torch.device("cpu"), precision="fp32", name="small")
    plan = RolloutPlan(num_inference_steps=4, eta=1.0, stochastic_steps=frozenset({0, 1, 2}), trained_steps=(0, 1, 2))
    kept = rollout(policy, prompts, plan, sample_indices=range(2), seed_key=(0,)).trajectories
    assert isinstance(kept, Trajectories)
    schedule = family.schedule(4, cells_of(kept.latents))
    hole, known = family.known_latents(kept.condition)
    start = kept.latents[0]
    for k in range(3):
        index = kept.steps_at(k)
        output = policy.predict(kept.latents[k], schedule.timesteps[index], kept.condition)
        transition = schedule.transition(output, kept.latents[k], index, 1.0)
        again = transition_log_prob(transition, kept.next_latents[k], kept.latent_mask)
        torch.testing.assert_close(again, kept.old_log_prob[k], atol=1e-6, rtol=0)
        if k < 2:
            expected = keep_known(kept.next_latents[k], (hole, known), start, schedule, index)
            assert torch.equal(kept.latents[k + 1], expected)
            outside = hole.expand_as(start) == 0
            noised = schedule.add_noise_after(known, start, index)
            assert torch.equal(kept.latents[k + 1][outside], noised[outside])


def test_known_latents_do_not_depend_on_what_lay_in_the_hole() -> None:
    family, prompt = FluxBlend(small_flux_inpaint_pipeline()), prompt_of(64, 64, seed=3)
    other = replace(prompt, image=torch.where(prompt.mask > 0.5, -prompt.image, prompt.image))
    assert torch.equal(family.encode_prompts([prompt])[0], family.encode_prompts([other])[0])


def test_a_hole_smaller_than_a_cell_does_not_vanish() -> None:
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, 0, 3, 3] = 1
    mask[1, 0, 16:40] = 1
    cells = hole_cells(mask, (8, 8))
    assert cells[0].sum() == 1
    assert cells[0, 0, 0, 0] == 1
    assert torch.equal(cells[1], torch.nn.functional.interpolate(mask[1:], size=(8, 8))[0])


def test_a_size_that_does_not_fill_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="72x64 px: this model paints multiples of 16 px"):
        FluxFill(small_fill_pipeline()).encode_prompts([prompt_of(72, 64, seed=0)])


@torch.no_grad()
def test_a_network_that_is_told_guidance_depends_on_it_and_others_do_not() -> None:
    latents, text = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0)), "a cat"
    for is_told in (True, False):
        outputs = []
        for guidance in (1.0, 30.0):
            family = FluxFill(small_fill_pipeline(guidance_embeds=is_told), guidance=guidance)
            condition = family.join_condition(torch.ones(1, 1, 8, 8), latents)
            time = torch.tensor([500.0])
            outputs.append(family.predict(family.network, latents, time, condition, family.embed(text), "fp32"))
        assert torch.equal(*outputs) is not is_told


@torch.no_grad()
def test_images_of_a_batch_have_texts_and_times_of_their_own() -> None:
    family = FluxFill(small_fill_pipeline())
    prompts = [prompt_of(64, 64, seed) for seed in range(2)]
    condition, _ = family.encode_prompts(prompts)
    latents = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    texts, times = [family.embed(text) for text in ("a cat", "grass")], torch.tensor([900.0, 100.0])
    joined = family.predict(family.network, latents, times, condition, type(texts[0]).join(texts), "fp32")
    for i in range(2):
        alone = family.predict(family.network, latents[[i]], times[[i]], condition[[i]], texts[i], "fp32")
        torch.testing.assert_close(joined[[i]], alone, atol=1e-5, rtol=1e-4)
