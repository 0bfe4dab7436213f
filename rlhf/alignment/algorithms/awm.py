"""Advantage-weighted matching (arXiv:2509.25050): the loss of pre-training stands for the log-prob.

Samples are denoised deterministically and noised again, as in `nft`. In place of a log-prob stands the negative loss of
pre-training: the squared error of the network's output against the output that implies the sample. Its ratio to that of
the sampling policy is clipped as in PPO, so the network learns to predict good samples better, and poor ones worse.
Deviations: advantages are those of `grpo`; all noise levels weigh alike; the KL to the base policy is that of the step
rule's transitions, as in the other algorithms (the paper: squared difference of velocities).
"""

from dataclasses import replace

import torch

from rlhf.alignment.algorithms import nft
from rlhf.alignment.objective import Objective, PassLoss, TrainingBatch
from rlhf.alignment.policy_gradient import clipped_objective, kl_between, no_old_policy, ratio_figures
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule, masked_mean
from rlhf.diffusion.trajectories import NoisedSamples


def compute_loss(
    output: torch.Tensor,
    base_output: torch.Tensor | None,
    batch: TrainingBatch,
    k: int,
    schedule: Schedule,
    config: AlignConfig,
) -> PassLoss:
    """Loss of the k-th noising of a micro-batch; see `LossFunction`."""
    t, device, steps = batch.trajectories, output.device, batch.trajectories.steps_at(k)
    assert isinstance(t, NoisedSamples)
    assert t.old_prediction is not None
    latents, mask, old_output = t.latents[k].to(device), t.latent_mask.to(device), t.old_prediction[k].to(device)
    target = schedule.target_output(t.clean_latents.to(device), latents, steps)
    likelihood, old_likelihood = (-masked_mean((said - target).square(), mask) for said in (output, old_output))
    objective, ratio = clipped_objective(
        likelihood, old_likelihood, batch.advantages.to(device), batch.trust_weights.to(device), config.clip_range
    )
    kl = kl_between(output, base_output, latents, steps, schedule, config.eta, mask)
    return PassLoss(
        loss=objective + config.kl_weight * kl.mean(),
        disagreement=float((ratio.detach() - 1).abs().max()),
        figures=ratio_figures(likelihood - old_likelihood, kl, config.clip_range),
    )


ALGORITHM = replace(
    nft.ALGORITHM,
    objective=Objective(compute_loss=compute_loss, disagreement="ratio_error", old_policy_decay=no_old_policy),
)
