"""GRPO-Guard (arXiv:2510.22319): `grpo` with a ratio, and a gradient, that every step scales alike.

The log-ratio of a Gaussian step is (e.d - d^2 / 2s) / s for a drawn noise e, a mean moved by d and a deviation s: it is
less than 0 on average, and its size depends on the step. Without the bias and times s it is e.d, so that clipping binds
both signs of the advantage alike. The loss is divided by the derivative of the step's mean by the network's output,
so that the gradients of all steps have one scale. Deviations: those of `grpo`; the paper divides by the step's length,
which is that derivative up to a factor for its own rule; rules whose steps have no length need the derivative itself.
"""

from dataclasses import replace

import torch

from rlhf.alignment.algorithms import grpo
from rlhf.alignment.objective import Objective, PassLoss, TrainingBatch
from rlhf.alignment.policy_gradient import clipped_objective, kl_between, no_old_policy, ratio_figures
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule, masked_mean, transition_log_prob
from rlhf.diffusion.trajectories import RolloutPlan, Trajectories

TINY_OUTPUT = 2.0**-10
"""A network's output for the derivative: so small that no prediction is clipped; a power of 2 divides exactly."""


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """The plan of `grpo`, which also keeps the means that the samples were drawn around."""
    return replace(grpo.plan_rollout(config, update, seed), keeps_means=True)


def compute_loss(
    output: torch.Tensor,
    base_output: torch.Tensor | None,
    batch: TrainingBatch,
    k: int,
    schedule: Schedule,
    config: AlignConfig,
) -> PassLoss:
    """Loss of the k-th stored transition of a micro-batch; see `LossFunction`."""
    t, device, steps = batch.trajectories, output.device, batch.trajectories.steps_at(k)
    assert isinstance(t, Trajectories)
    assert t.old_mean is not None
    latents, mask = t.latents[k].to(device), t.latent_mask.to(device)
    next_latents, old_mean = t.next_latents[k].to(device), t.old_mean[k].to(device)
    transition = schedule.transition(output, latents, steps, config.eta)
    drawn = (next_latents - old_mean) / transition.std_dev_t
    log_ratio = masked_mean(drawn * (transition.mean - old_mean), mask)
    weights = batch.trust_weights.to(device) / mean_derivative(schedule, latents, steps, config.eta)
    objective, ratio = clipped_objective(
        log_ratio, torch.zeros_like(log_ratio), batch.advantages.to(device), weights, config.clip_range
    )
    kl = kl_between(output, base_output, latents, steps, schedule, config.eta, mask)
    log_prob = transition_log_prob(transition, next_latents, mask).detach()
    unscaled = (log_prob - t.old_log_prob[k].to(device)).exp()
    return PassLoss(
        loss=objective + config.kl_weight * kl.mean(),
        disagreement=float((unscaled - 1).abs().max()),
        figures=ratio_figures(log_ratio, kl, config.clip_range),
    )


def mean_derivative(schedule: Schedule, latents: torch.Tensor, steps: torch.Tensor, eta: float) -> torch.Tensor:
    """Size [B] of the derivative of each step's mean by the network's output, in which the mean is linear."""
    nothing = torch.zeros_like(latents[:, :1, :1, :1])
    moved = schedule.transition(torch.full_like(nothing, TINY_OUTPUT), nothing, steps, eta)
    return (moved.mean / TINY_OUTPUT).abs().flatten()


ALGORITHM = replace(
    grpo.ALGORITHM,
    plan_rollout=plan_rollout,
    objective=Objective(compute_loss=compute_loss, disagreement="ratio_error", old_policy_decay=no_old_policy),
)
