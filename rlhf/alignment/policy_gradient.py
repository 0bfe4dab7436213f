"""The regularised policy-gradient loss: a clipped ratio, weighed by trust, and a KL to the base policy."""

import torch

from rlhf.alignment.objective import Objective, PassLoss, TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule, transition_kl, transition_log_prob
from rlhf.diffusion.trajectories import Trajectories


def compute_loss(
    output: torch.Tensor,
    base_output: torch.Tensor | None,
    batch: TrainingBatch,
    k: int,
    schedule: Schedule,
    config: AlignConfig,
) -> PassLoss:
    """Loss of the k-th stored transition of a micro-batch; see `LossFunction`."""
    t, device = batch.trajectories, output.device
    assert isinstance(t, Trajectories)
    latents, next_latents, mask = t.latents[k].to(device), t.next_latents[k].to(device), t.latent_mask.to(device)
    log_prob, kl = replay_transition(
        output, base_output, latents, next_latents, t.steps_at(k), schedule, config.eta, mask
    )
    old_log_prob = t.old_log_prob[k].to(device)
    objective, ratio = clipped_objective(
        log_prob, old_log_prob, batch.advantages.to(device), batch.trust_weights.to(device), config.clip_range
    )
    return PassLoss(
        loss=objective + config.kl_weight * kl.mean(),
        disagreement=float((ratio.detach() - 1).abs().max()),
        figures=ratio_figures(log_prob - old_log_prob, kl, config.clip_range),
    )


def ratio_figures(log_ratio: torch.Tensor, kl: torch.Tensor, clip_range: float) -> dict[str, float]:
    """The metrics of log-ratios [B] and of KLs to the base policy [B]."""
    log_ratio = log_ratio.detach()
    return {
        "approx_kl": float(0.5 * log_ratio.square().mean()),
        "clipfrac": float(((log_ratio.exp() - 1).abs() > clip_range).float().mean()),
        "kl_to_base": float(kl.detach().mean()),
    }


def no_old_policy(config: AlignConfig, update: int) -> None:
    """None: samplers use the current weights, so ratios are 1 before the update."""


def clipped_objective(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    trust_weights: torch.Tensor,
    clip_range: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped loss (arXiv:1707.06347, eq. 7), with each sample weighed by its trust weight (PrefPaint eq. 11).

    All shapes [B]. Returns the mean loss and the ratio [B].
    """
    ratio = torch.exp(log_prob - old_log_prob)
    unclipped = advantages * ratio
    clipped = advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return -(trust_weights * torch.minimum(unclipped, clipped)).mean(), ratio


def replay_transition(
    model_output: torch.Tensor,
    base_output: torch.Tensor | None,
    latents: torch.Tensor,
    next_latents: torch.Tensor,
    index: torch.Tensor,
    schedule: Schedule,
    eta: float,
    latent_mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of stored transitions under new weights, and their KL to the base policy; both [B].

    Shapes: model_output, base_output, latents, next_latents [B, C, h, w]; index int64 [B], on the CPU, positions in
    the schedule; latent_mask [B, 1, h, w]. The KL is 0 without `base_output`.
    """
    transition = schedule.transition(model_output, latents, index, eta)
    log_prob = transition_log_prob(transition, next_latents, latent_mask)
    return log_prob, kl_between(model_output, base_output, latents, index, schedule, eta, latent_mask)


def kl_between(
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


# The disagreement is the largest distance of a ratio from 1.
POLICY_GRADIENT = Objective(compute_loss=compute_loss, disagreement="ratio_error", old_policy_decay=no_old_policy)
