"""One denoising step, and the known image's place in its result: the same in rollout, serving and the probe."""

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


def keep_known(
    drawn: torch.Tensor,
    known: tuple[torch.Tensor, torch.Tensor] | None,
    noise: torch.Tensor,
    schedule: Schedule,
    step_index: torch.Tensor,
) -> torch.Tensor:
    """The latents after a step, with the known image in its place, noised by the trajectory's own initial `noise`.

    All shapes [B, C, h, w]; `known` is what `ModelFamily.known_latents` gives. Without it the latents are those drawn.
    """
    if known is None:
        return drawn
    hole, clean = known
    return (1 - hole) * schedule.add_noise_after(clean, noise, step_index) + hole * drawn


def finish_known(latents: torch.Tensor, known: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Finished latents [B, C, h, w], with the known image's own latents outside the hole."""
    return latents if known is None else (1 - known[0]) * known[1] + known[0] * latents
