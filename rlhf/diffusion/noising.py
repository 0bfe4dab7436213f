"""Noises finished samples again, to train by the forward process."""

from collections.abc import Sequence

import torch

from rlhf.diffusion.noise import generator_of, noise_like
from rlhf.diffusion.steps.step_rule import Schedule


def noise_again(
    schedule: Schedule, clean: torch.Tensor, keys: Sequence[tuple[object, ...]], times: int, among: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean latents [B, C, h, w], each noised to `times` different positions among the schedule's first ones, or all.

    Returns latents [K, B, C, h, w] and positions, int64 [K, B]. Positions and noise depend on a sample's key alone, so
    samples with one key have the same.
    """
    order = [torch.randperm(among or len(schedule.timesteps), generator=generator_of(*key, "steps")) for key in keys]
    steps = torch.stack(order, dim=1)[:times]
    latents = []
    for k, index in enumerate(steps):
        noise = torch.stack([noise_like(clean.shape[1:], *key, "noised", k) for key in keys]).to(clean)
        latents.append(schedule.add_noise(clean, noise, index))
    return torch.stack(latents), steps
