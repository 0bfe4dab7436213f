"""DiffusionNFT (arXiv:2509.16117): samples are noised again; predictions are drawn to the good ones, off the poor.

No log-probs and no transitions: samples are denoised deterministically, and the loss is that of the forward process.
Written in clean latents x, of which predictions of any type (epsilon, v, x) are an affine function, so that mixtures of
predictions are mixtures of x; errors are weighed over time by the paper's 1 / |x - x0|.
Deviations: advantages are those of `grpo` (the paper divides by the deviation over all prompts); noise levels are the
schedule's own, `trained_steps` of them drawn for each sample; the old policy's predictions are made where the samples
are, by the weights that made them; the KL to the base policy is that of DDIM's transitions, as in the other algorithms,
so that `kl_weight` and `kl_to_base` mean the same (the paper: squared difference of velocities).
"""

from dataclasses import replace

import torch

from rlhf.alignment.algorithms import grpo
from rlhf.alignment.objective import Objective, PassLoss, TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule, masked_mean, transition_kl
from rlhf.diffusion.trajectories import NoisedSamples, RolloutPlan

LEAST_ERROR = 1e-5
"""Of the weight over time, as in the release."""


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """No step is random, so samples of a prompt differ by their initial noise; the end is noised again."""
    return RolloutPlan(
        num_inference_steps=config.num_inference_steps,
        eta=config.eta,
        log_prob_over=config.log_prob_over,
        stochastic_steps=frozenset(),
        noised_steps=config.trained_steps,
    )


def passes_per_batch(config: AlignConfig) -> int:
    """One for each noising."""
    return config.trained_steps


def old_policy_decay(config: AlignConfig, update: int) -> float | None:
    """The paper's schedule: `old_decay_rate` more with every update, up to `old_decay_max`; None at rate 0."""
    return min(config.old_decay_rate * update, config.old_decay_max) if config.old_decay_rate else None


def compute_loss(
    output: torch.Tensor,
    base_output: torch.Tensor | None,
    batch: TrainingBatch,
    k: int,
    schedule: Schedule,
    config: AlignConfig,
) -> PassLoss:
    """Of the k-th noising of a micro-batch, as `LossFunction`."""
    t, device, steps = batch.trajectories, output.device, batch.trajectories.steps_at(k)
    assert isinstance(t, NoisedSamples)
    latents, mask, old_output = t.latents[k].to(device), t.latent_mask.to(device), t.old_prediction[k].to(device)
    clean, old = (schedule.predicted_clean(said, latents, steps) for said in (output, old_output))
    advantages = batch.advantages.to(device) / config.advantage_clip
    losses = contrast(clean, old, t.clean_latents.to(device), advantages, config.nft_beta, mask)
    kl = kl_of(output, base_output, latents, steps, schedule, config.eta, mask)
    # Times the clip, as in the release: a small advantage then weighs the same whatever the clip.
    objective = config.advantage_clip * (batch.trust_weights.to(device) * losses).mean()
    return PassLoss(
        loss=objective + config.kl_weight * kl.mean(),
        disagreement=float((output - old_output).detach().abs().flatten(1).mean(1).max()),
        figures={
            "kl_to_old": float(kl_of(output.detach(), old_output, latents, steps, schedule, config.eta, mask).mean()),
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
    advantages [B] in [-1, 1]; mask [B, 1, h, w]. Divided by beta, so that the gradient at the old policy does not
    depend on it: it is the advantage times that of the weighed squared error.
    """
    optimality = (1 + advantages) / 2
    positive, negative = old + beta * (clean - old), old - beta * (clean - old)
    errors = [_weighed_error(mixed, target, mask) for mixed in (positive, negative)]
    return (optimality * errors[0] + (1 - optimality) * errors[1]) / beta


def _weighed_error(clean: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error over its own mean absolute error, which is taken as a constant; [B]."""
    size = masked_mean((clean - target).abs(), mask).detach().clamp(min=LEAST_ERROR)
    return masked_mean((clean - target).square(), mask) / size


def kl_of(
    output: torch.Tensor,
    other_output: torch.Tensor | None,
    latents: torch.Tensor,
    steps: torch.Tensor,
    schedule: Schedule,
    eta: float,
    mask: torch.Tensor,
) -> torch.Tensor:
    """KL [B] of the transitions under two predictions, in nats per latent element; 0 without the other."""
    if other_output is None:
        return torch.zeros(len(output), device=output.device)
    transition = schedule.transition(output, latents, steps, eta)
    return transition_kl(transition, schedule.transition(other_output, latents, steps, eta).mean, mask)


ALGORITHM = replace(
    grpo.ALGORITHM,
    plan_rollout=plan_rollout,
    passes_per_batch=passes_per_batch,
    # Largest mean distance of a sample's prediction from the one that was made where it was sampled.
    objective=Objective(compute_loss=compute_loss, disagreement="prediction_error", old_policy_decay=old_policy_decay),
)
