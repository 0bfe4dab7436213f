from pathlib import Path

import pytest
import torch
from small_parts import small_config, small_prompts

from rlhf.algorithms import algorithm_of
from rlhf.candidates import sample_plan
from rlhf.config import CandidatesConfig
from rlhf.images import decode_image, encode_png, image_to_tensor, tensor_to_image
from rlhf.policy import Policy, load_policy
from rlhf.rollout import noise_like, rollout
from rlhf.trajectories import RolloutPlan

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


@pytest.mark.parametrize("name", ["grpo", "prefpaint"])
def test_both_algorithms_keep_what_they_train(policy: Policy, small_pipeline: Path, name: str) -> None:
    align = small_config(small_pipeline, algorithm=name).align
    plan = algorithm_of(align).plan_rollout(align, 3, 0)
    kept = rollout(policy, small_prompts(2), plan, sample_indices=range(2), seed_key=(0,)).trajectories
    assert kept.step_indices == plan.trained_steps
    assert len(kept.latents) == len(plan.trained_steps)


def test_a_sample_that_starts_late_stays_near_the_original(policy: Policy) -> None:
    prompts = small_prompts(4)
    vae = policy.pipeline.vae
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
