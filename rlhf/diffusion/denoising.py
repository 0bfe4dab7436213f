"""One denoising step: the same in rollout, serving and the probe."""

from collections.abc import Callable

import torch

from rlhf.diffusion.steps.step_rule import Schedule, Transition

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A forward pass of the network: latents [B, C, h, w] and times [B] to its output, float32 [B, C, h, w]."""


@torch.no_grad()
def denoise(
    predict: Predict, latents: torch.Tensor, step_index: torch.Tensor, schedule: Schedule, eta: float = 0.0
) -> Transition:
    """The transition of latents [B, C, h, w] at positions `step_index` (int64 [B], on the CPU) of the schedule."""
    output = predict(latents, schedule.timesteps[step_index].to(latents.device))
    return schedule.transition(output, latents, step_index, eta)
