from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from family_painting import noise_for, policy_of, prompt_of
from small_families import small_multistep_fill_pipeline
from small_parts import small_config, small_prompts

from rlhf.alignment.algorithms.nft import plan_rollout
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import CandidatesConfig
from rlhf.diffusion.candidates import sample_plan
from rlhf.diffusion.denoising import denoise
from rlhf.diffusion.families.flux import FluxFill
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.rollout import Denoiser, rollout
from rlhf.diffusion.steps.step_rule import Prediction
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.storage.images import decode_image, encode_png, image_to_tensor, tensor_to_image

WINDOW = RolloutPlan(
    num_inference_steps=4,
    eta=1.0,
    stochastic_steps=frozenset({1, 2}),
    trained_steps=(1, 2),
    shares_initial_noise=True,
)


@pytest.fixture(scope="module")
def policy(small_pipeline: Path) -> Policy:
    return load_policy(small_config(small_pipeline).model)


def test_prompts_of_a_size_that_the_model_cannot_paint_are_refused(policy: Policy) -> None:
    factor = policy.family.pipeline.vae_scale_factor
    (prompt,) = small_prompts(1)
    cut = replace(prompt, image=prompt.image[:, 1:], mask=prompt.mask[:, 1:])
    with pytest.raises(UserError, match=f"prompts of 32x31 px: this model paints multiples of {factor} px"):
        rollout(policy, [cut], WINDOW, sample_indices=[0], seed_key=(0,))


def test_known_pixels_survive_a_rollout_and_its_png(policy: Policy) -> None:
    prompts = small_prompts(5)
    images = rollout(policy, prompts, WINDOW, sample_indices=[0], seed_key=(0,)).images
    for prompt, image in zip(prompts, images, strict=True):
        stored = image_to_tensor(decode_image(encode_png(tensor_to_image(image))))
        known = (prompt.mask < 0.5).expand_as(stored)
        assert torch.equal(stored[known], prompt.image[known])
        assert not torch.equal(stored[~known], prompt.image[~known])


def test_the_result_does_not_depend_on_who_else_is_in_the_batch(policy: Policy) -> None:
    prompts = small_prompts(4)
    together = rollout(policy, prompts, WINDOW, sample_indices=range(2), seed_key=(0, 5))
    alone = rollout(policy, prompts[2:3], WINDOW, sample_indices=range(2), seed_key=(0, 5))
    ours, theirs = together.trajectories.latents[:, 4:6], alone.trajectories.latents
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.images[4:6], alone.images, atol=2 / 127, rtol=0)


def test_same_key_same_bits_and_another_key_another_image(policy: Policy) -> None:
    prompts = small_prompts(2)
    a, b, c = (rollout(policy, prompts, WINDOW, sample_indices=[0], seed_key=(k,)).images for k in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_shared_prefix_changes_nothing(policy: Policy) -> None:
    """Slow reference: every sample is denoised from the start, with the group's common noise."""
    prompts = small_prompts(2)
    fast = rollout(policy, prompts, WINDOW, sample_indices=range(3), seed_key=(0,)).trajectories
    for index in range(3):
        slow = rollout(policy, prompts, WINDOW, sample_indices=[index], seed_key=(0,)).trajectories
        torch.testing.assert_close(fast.next_latents[:, index::3], slow.next_latents, atol=1e-4, rtol=1e-4)
    assert torch.equal(fast.latents[0, 0], fast.latents[0, 1]), "samples are one until the first random step"
    assert not torch.equal(fast.latents[1, 0], fast.latents[1, 1])


def test_stored_transitions_are_consecutive_and_only_the_planned_ones(policy: Policy) -> None:
    kept = rollout(policy, small_prompts(2), WINDOW, sample_indices=range(2), seed_key=(0,)).trajectories
    assert kept.step_indices == (1, 2)
    assert torch.equal(kept.next_latents[0], kept.latents[1])
    assert kept.old_log_prob.shape == (2, 4)


def test_latent_mask_covers_every_cell_that_touches_the_hole(policy: Policy) -> None:
    prompts = small_prompts(5)
    kept = rollout(policy, prompts, WINDOW, sample_indices=[0], seed_key=(0,)).trajectories
    for prompt, mask in zip(prompts, kept.latent_mask, strict=True):
        cells = prompt.mask.unfold(1, 4, 4).unfold(2, 4, 4).amax((-1, -2))
        assert torch.equal(mask, cells)


def test_noise_is_standard_normal_and_keyed() -> None:
    noise = torch.stack([noise_like((4, 8, 8), 0, "a", i) for i in range(200)])
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(noise_like((3,), 1, "x"), noise_like((3,), 1, "x"))
    assert not torch.equal(noise_like((3,), 1, "x"), noise_like((3,), 1, "y"))


@pytest.mark.parametrize("name", ["grpo", "mixgrpo", "prefpaint"])
def test_algorithms_of_transitions_keep_what_they_train(policy: Policy, small_pipeline: Path, name: str) -> None:
    align = small_config(small_pipeline, algorithm=name).align
    plan = algorithm_of(align).plan_rollout(align, 3, 0)
    kept = rollout(policy, small_prompts(2), plan, sample_indices=range(2), seed_key=(0,)).trajectories
    assert kept.step_indices == plan.trained_steps
    assert len(kept.latents) == len(plan.trained_steps)


def test_a_sample_that_starts_late_stays_near_the_original(policy: Policy) -> None:
    prompts = small_prompts(4)
    vae = policy.family.pipeline.vae
    originals = torch.stack([p.image for p in prompts])
    with torch.no_grad():
        clean = vae.encode(originals).latent_dist.mode() * vae.config.scaling_factor

    def distance(first_step: int) -> float:
        plan = RolloutPlan(
            num_inference_steps=8,
            eta=1.0,
            stochastic_steps=frozenset({first_step}),
            trained_steps=(first_step,),
            first_step=first_step,
        )
        done = rollout(policy, prompts, plan, sample_indices=[0], seed_key=(0,))
        start = done.trajectories.latents[0]
        return float((start - clean).square().mean())

    distances = [distance(step) for step in (7, 4, 1)]
    assert distances == sorted(distances)
    assert distances[0] < 0.2 * distances[-1]


def test_candidates_follow_the_configured_strengths() -> None:
    config = CandidatesConfig(num_inference_steps=(10,), eta=(0.0,), strength=(1.0, 0.5, 0.01))
    assert [sample_plan(config, i).first_step for i in range(4)] == [0, 5, 9, 0]


def test_the_compressed_grid_of_mixgrpo_leaves_its_window_as_grpo_has_it(policy: Policy, small_pipeline: Path) -> None:
    config = {"num_inference_steps": 8, "window_range": 4}
    kept, counts = {}, {}
    for name in ("grpo", "mixgrpo"):
        align = small_config(small_pipeline, algorithm=name, **config).align
        plan = algorithm_of(align).plan_rollout(align, 1, 0)
        done = rollout(policy, small_prompts(2), plan, sample_indices=range(3), seed_key=(0,))
        kept[name], counts[name] = done.trajectories, done.forward_images
    for column in ("latents", "next_latents", "old_log_prob"):
        assert torch.equal(getattr(kept["grpo"], column), getattr(kept["mixgrpo"], column)), column
    assert counts["mixgrpo"] < counts["grpo"]


@pytest.mark.parametrize("name", ["awm", "grpo", "guard", "mixgrpo", "nft", "prefpaint"])
def test_images_through_the_unet_are_those_of_the_closed_form(policy: Policy, small_pipeline: Path, name: str) -> None:
    prompts, samples, steps = 3, 2, 7
    align = small_config(small_pipeline, algorithm=name, num_inference_steps=steps, window_range=4).align
    asked = 0

    def count(module: object, inputs: tuple, output: object) -> None:
        nonlocal asked
        asked += len(inputs[0])

    hook = policy.network.register_forward_hook(count)
    for update in range(3):
        plan = algorithm_of(align).plan_rollout(align, update, 0)
        begin = min(plan.trained_steps, default=0)  # shared by a prompt's samples
        end = max(plan.trained_steps, default=0) + 1
        expected = {
            "grpo": prompts * begin + prompts * samples * (steps - begin),
            "mixgrpo": prompts * begin + prompts * samples * (end - begin + max(1, int((steps - end) * 0.4))),
            "nft": prompts * samples * (steps + align.trained_steps),
            "prefpaint": prompts * samples * steps,
        }[{"guard": "grpo", "awm": "nft"}.get(name, name)]
        asked = 0
        done = rollout(policy, small_prompts(prompts), plan, sample_indices=range(samples), seed_key=(0,))
        assert done.forward_images == asked == expected
    hook.remove()


def test_samples_of_nft_are_noised_at_steps_and_with_noise_of_their_own(policy: Policy, small_pipeline: Path) -> None:
    align = small_config(small_pipeline, algorithm="nft", num_inference_steps=6, trained_steps=3).align
    prompts, plan = small_prompts(4), plan_rollout(align, 0, 0)
    done = rollout(policy, prompts, plan, sample_indices=range(2), seed_key=(0, 5))
    kept = done.trajectories
    assert kept.latents.shape == kept.old_prediction.shape == (3, *kept.clean_latents.shape)
    assert all(len(set(own.tolist())) == 3 for own in kept.steps.T), "a sample's steps differ from one another"
    assert len({tuple(own.tolist()) for own in kept.steps.T}) > 4, "and from those of other samples"
    schedule, hole = policy.family.schedule(6, (8, 8)), torch.stack([p.mask for p in prompts]).repeat_interleave(2, 0)
    decoded = policy.family.decode(kept.clean_latents)
    torch.testing.assert_close((decoded.clamp(-1, 1) * hole), done.images * hole, atol=2 / 255, rtol=0)
    noises = []
    for k, steps in enumerate(kept.steps):
        alpha = schedule.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noises.append((kept.latents[k] - alpha.sqrt() * kept.clean_latents) / (1 - alpha).sqrt())
        with torch.no_grad():
            output = policy.predict(kept.latents[k], schedule.timesteps[steps], kept.condition)
        assert torch.equal(output, kept.old_prediction[k])
    noise = torch.cat(noises)
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert len({round(float(one.sum()), 3) for one in noise}) == len(noise), "no two are alike"


def test_what_nft_keeps_does_not_depend_on_who_else_is_in_the_batch(policy: Policy, small_pipeline: Path) -> None:
    align = small_config(small_pipeline, algorithm="nft").align
    prompts, plan = small_prompts(4), plan_rollout(align, 0, 0)
    together = rollout(policy, prompts, plan, sample_indices=range(2), seed_key=(0, 5)).trajectories
    alone = rollout(policy, prompts[2:3], plan, sample_indices=range(2), seed_key=(0, 5)).trajectories
    assert torch.equal(together.steps[:, 4:6], alone.steps)
    torch.testing.assert_close(together.latents[:, 4:6], alone.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.old_prediction[:, 4:6], alone.old_prediction, atol=1e-4, rtol=1e-4)
    other = rollout(policy, prompts[2:3], plan, sample_indices=range(2), seed_key=(0, 6)).trajectories
    assert not torch.equal(other.steps, alone.steps) or not torch.equal(other.latents, alone.latents)


def test_steps_of_higher_order_use_the_predictions_since_the_last_random_step() -> None:
    family = FluxFill(small_multistep_fill_pipeline())
    policy, prompt, steps = policy_of(family), prompt_of(64, 64, seed=0), 7
    plan = RolloutPlan(num_inference_steps=steps, eta=1.0, stochastic_steps=frozenset({2}))
    denoiser = Denoiser(policy, plan, (16, 16), policy.text)
    schedule, condition = denoiser.schedule, family.encode_prompts([prompt])[0]
    latents, used, numbers = noise_for(family, prompt, seed=1), [], []
    for step in range(steps):
        index, is_random = torch.tensor([step]), step == 2
        predict = partial(policy.predict, condition=condition)
        expected = denoise(predict, latents, index, schedule, float(is_random))
        now = Prediction(step=step, latents=latents, clean=expected.clean)
        used = [] if is_random else [now, *used][:3]
        numbers.append(len(used))
        mean = schedule.multistep(used) if len(used) > 1 else expected.mean
        taken = denoiser.step(latents, step, condition, float(is_random))
        assert torch.equal(taken.mean, mean), step
        latents = taken.mean
    assert numbers == [1, 2, 0, 1, 2, 3, 3]
