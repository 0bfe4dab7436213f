"""The regularised policy-gradient loss: clipped ratio, weighed by trust."""

import torch

from rlhf.ddim import Schedule, transition_kl, transition_log_prob, transition_mean


def clipped_objective(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantages: torch.Tensor,
    trust_weights: torch.Tensor,
    clip_range: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped loss (arXiv:1707.06347, eq. 7), each sample times its trust weight (PrefPaint eq. 11).

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
    step: int,
    schedule: Schedule,
    eta: float,
    latent_mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of a stored transition under new weights, and its KL to the base policy; both [B].

    Shapes: model_output, base_output, latents, next_latents [B, 4, h, w]; latent_mask [B, 1, h, w].
    Without `base_output` the KL is 0.
    """
    index = torch.full((len(latents),), step)
    mean, std_dev_t = transition_mean(model_output, latents, index, schedule, eta)
    log_prob = transition_log_prob(mean, std_dev_t, next_latents, latent_mask)
    if base_output is None:
        return log_prob, torch.zeros_like(log_prob)
    base_mean, _ = transition_mean(base_output, latents, index, schedule, eta)
    return log_prob, transition_kl(mean, base_mean, std_dev_t, latent_mask)
