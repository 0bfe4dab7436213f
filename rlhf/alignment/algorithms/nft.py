"""DiffusionNFT (arXiv:2509.16117): noises samples again and moves predictions towards good ones, away from poor ones.

The method needs no log-probs and no transitions: samples are denoised deterministically, and the loss belongs to the
forward process. It is written in clean latents x. Predictions of any type (epsilon, v, x) are affine functions of x, so
mixtures of predictions are mixtures of x. Errors are weighed over time by the paper's 1 / |x - x0|.
Deviations: advantages are those of `grpo` (the paper divides by the deviation over all prompts). Noise levels are the
schedule's own, `trained_steps` of them drawn for each sample. Samplers compute the old policy's predictions, with the
weights that sampled. The KL to the base policy is the KL of the step rule's transitions, as in the other algorithms, so
that `kl_weight` and `kl_to_base` mean the same (the paper: squared difference of velocities).
"""

from dataclasses import replace

import torch

from rlhf.alignment.algorithms import grpo
from rlhf.alignment.objective import Objective, PassLoss, TrainingBatch
from rlhf.alignment.policy_gradient import kl_between
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule, masked_mean
from rlhf.diffusion.trajectories import NoisedSamples, RolloutPlan

LEAST_ERROR = 1e-5
"""Smallest error in the weight over time, as in the paper's code."""


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """Run deterministic steps, so that samples of a prompt differ by their initial noise; noise the results again."""
    return RolloutPlan(
        num_inference_steps=config.num_inference_steps,
        eta=config.eta,
        log_prob_over=config.log_prob_over,
        stochastic_steps=frozenset(),
        noised_steps=config.trained_steps,
        noised_range=config.trained_range,
    )


def passes_per_batch(config: AlignConfig) -> int:
    """One pass per noising."""
    return config.trained_steps


def old_policy_decay(config: AlignConfig, update: int) -> float | None:
    """EMA decay by the paper's schedule: `old_decay_rate` per update, up to `old_decay_max`; None at rate 0."""
    return min(config.old_decay_rate * update, config.old_decay_max) if config.old_decay_rate else None


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
    clean, old = (schedule.predicted_clean(said, latents, steps) for said in (output, old_output))
    advantages = batch.advantages.to(device) / config.advantage_clip
    losses = contrast(clean, old, t.clean_latents.to(device), advantages, config.nft_beta, mask)
    kl = kl_between(output, base_output, latents, steps, schedule, config.eta, mask)
    # Multiplied by the clip, as in the paper's code: a small advantage then weighs the same for every clip.
    objective = config.advantage_clip * (batch.trust_weights.to(device) * losses).mean()
    kl_to_old = kl_between(output.detach(), old_output, latents, steps, schedule, config.eta, mask)
    return PassLoss(
        loss=objective + config.kl_weight * kl.mean(),
        disagreement=float((output - old_output).detach().abs().flatten(1).mean(1).max()),
        figures={
            "kl_to_old": float(kl_to_old.mean()),
            "kl_to_base": float(kl.detach().mean()),
        },
    )


def contrast(
    clean: torch.Tensor,
    old: torch.Tensor,
    target: torch.Tensor,
    advantages: torch.Tensor,
    beta: float,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Losses [B] of the implicit positive and negative policies, weighed by the probability of optimality.

    Shapes: clean and old (the predictions of the trained and of the old policy) and target (the samples) [B, C, h, w];
    advantages [B] in [-1, 1]; mask [B, 1, h, w]. The division by beta makes the gradient at the old policy independent
    of beta: it is the advantage times the gradient of the weighed squared error.
    """
    optimality = (1 + advantages) / 2
    positive, negative = old + beta * (clean - old), old - beta * (clean - old)
    errors = [_weighed_error(mixed, target, mask) for mixed in (positive, negative)]
    return (optimality * errors[0] + (1 - optimality) * errors[1]) / beta


def _weighed_error(clean: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error [B], divided by its own mean absolute error, which counts as a constant."""
    size = masked_mean((clean - target).abs(), mask).detach().clamp(min=LEAST_ERROR)
    return masked_mean((clean - target).square(), mask) / size


ALGORITHM = replace(
    grpo.ALGORITHM,
    plan_rollout=plan_rollout,
    passes_per_batch=passes_per_batch,
    # The disagreement is the largest mean distance of a sample's prediction from the sampler's prediction.
    objective=Objective(compute_loss=compute_loss, disagreement="prediction_error", old_policy_decay=old_policy_decay),
)
