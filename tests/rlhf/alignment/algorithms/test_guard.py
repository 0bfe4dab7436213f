"""GRPO-Guard: against the paper's formula written out with torch.distributions, and the scale of its gradients."""

from dataclasses import replace

import pytest
import torch
from small_schedulers import SCHEDULES, random

from rlhf.alignment.algorithms import guard
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.diffusion.trajectories import Trajectories

BATCH, STEPS = 4, (1, 3, 6)
CONFIG = AlignConfig(algorithm="guard", kl_weight=0.0, eta=0.8, clip_range=5e-4)
ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64)
TRUST = torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float64)


def make_batch(schedule: Schedule) -> tuple[TrainingBatch, torch.Tensor, torch.Tensor]:
    """A batch of stored transitions, with the outputs that drew them and the noise that was drawn, [K, B, 3, 5, 5]."""
    latents, outputs, noise = (random(len(STEPS), BATCH, 3, 5, 5, seed=seed) for seed in range(3))
    mask = torch.zeros(BATCH, 1, 5, 5, dtype=torch.float64)
    mask[:, :, 1:4, 1:3] = 1
    records = []
    for k, step in enumerate(STEPS):
        drawn_from = schedule.transition(outputs[k], latents[k], torch.full((BATCH,), step), CONFIG.eta)
        following = drawn_from.mean + drawn_from.std_dev_t * noise[k]
        density = torch.distributions.Normal(drawn_from.mean, drawn_from.std_dev_t).log_prob(following)
        records.append((following, drawn_from.mean, mean_in_hole(density, mask)))
    following, means, log_prob = (torch.stack([r[i] for r in records]) for i in range(3))
    trajectories = Trajectories(
        condition=torch.zeros(BATCH, 4, 5, 5),
        latent_mask=mask,
        latents=latents,
        next_latents=following,
        old_log_prob=log_prob,
        step_indices=STEPS,
        old_mean=means,
    )
    return TrainingBatch(trajectories=trajectories, advantages=ADVANTAGES, trust_weights=TRUST), outputs, noise


def mean_in_hole(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([v[:, m[0] > 0].mean() for v, m in zip(values, mask, strict=True)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ratio_is_the_papers_and_the_loss_its_clipped_mean_over_the_steps_derivative(name: str) -> None:
    schedule = SCHEDULES[name]()
    batch, outputs, _ = make_batch(schedule)
    t = batch.trajectories
    for k, step in enumerate(STEPS):
        index = torch.full((BATCH,), step)
        output = outputs[k] + 0.05 * random(BATCH, 3, 5, 5, seed=9)
        now = schedule.transition(output, t.latents[k], index, CONFIG.eta)
        deviation = float(now.std_dev_t[0])
        density = torch.distributions.Normal(now.mean, now.std_dev_t).log_prob(t.next_latents[k])
        log_ratio = mean_in_hole(density, t.latent_mask) - t.old_log_prob[k]
        bias = mean_in_hole((now.mean - t.old_mean[k]) ** 2, t.latent_mask) / (2 * deviation**2)
        ratio = torch.exp((log_ratio + bias) * deviation)
        clipped = ratio.clamp(1 - CONFIG.clip_range, 1 + CONFIG.clip_range)
        assert (ratio != clipped).any(), "nothing is clipped here"
        size = torch.autograd.functional.jacobian(
            lambda o, index=index, k=k: schedule.transition(o, t.latents[k], index, CONFIG.eta).mean[0, 0, 0, 0],
            output,
        )[0, 0, 0, 0]
        expected = -(TRUST * torch.minimum(ADVANTAGES * ratio, ADVANTAGES * clipped)).mean() / abs(float(size))
        found = guard.compute_loss(output, None, batch, k, schedule, CONFIG)
        assert float(found.loss) == pytest.approx(float(expected), rel=1e-5)
        assert found.disagreement == pytest.approx(float((log_ratio.exp() - 1).abs().max()), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_the_old_policy_every_steps_gradient_is_the_noise_times_the_advantage(name: str) -> None:
    """Whatever a step's deviation and length are; under `grpo` the gradients of these steps differ in size."""
    schedule = SCHEDULES[name]()
    batch, outputs, noise = make_batch(schedule)
    elements = 3 * 6
    for k, step in enumerate(STEPS):
        output = outputs[k].clone().requires_grad_()
        part = guard.compute_loss(output, None, batch, k, schedule, CONFIG)
        assert part.disagreement < 1e-9
        part.loss.backward()
        nothing = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        sign = schedule.transition(nothing + 1e-3, nothing, torch.tensor([step]), CONFIG.eta).mean.sign()
        expected = -sign * noise[k] * (ADVANTAGES * TRUST).view(-1, 1, 1, 1) * batch.trajectories.latent_mask
        assert torch.allclose(output.grad, expected / (elements * BATCH), rtol=1e-4, atol=1e-9)


def test_the_bias_of_the_log_ratio_is_gone_whatever_the_policy_moved() -> None:
    """With noise of mean 0 the guarded log-ratio has mean 0; the plain one is less, so positive samples never clip."""
    schedule = SCHEDULES["flow_sde"]()
    batch, outputs, noise = make_batch(schedule)
    t = batch.trajectories
    index = torch.full((BATCH,), STEPS[0])
    both = []
    for sign in (1, -1):
        drawn = schedule.transition(outputs[0], t.latents[0], index, CONFIG.eta)
        following = torch.stack([drawn.mean + sign * drawn.std_dev_t * noise[0]])
        mirrored = replace(batch, trajectories=replace(t, next_latents=following, step_indices=STEPS[:1]))
        config = CONFIG.model_copy(update={"clip_range": 100.0})
        moved = outputs[0] + 0.3
        ones = replace(mirrored, advantages=torch.ones(BATCH).double(), trust_weights=torch.ones(BATCH).double())
        both.append(guard.compute_loss(moved[:1].expand(BATCH, -1, -1, -1), None, ones, 0, schedule, config))
    logs = [part.figures["approx_kl"] for part in both]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_the_plan_is_that_of_grpo_with_its_means() -> None:
    plan = guard.plan_rollout(CONFIG, 3, 5)
    assert plan.keeps_means
    assert plan.trained_steps == tuple(sorted(plan.stochastic_steps))
    assert len(plan.trained_steps) == CONFIG.window_size
