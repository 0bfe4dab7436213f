"""A probe: one transition whose log-prob tells whether two processes hold the same policy and compute alike."""

import torch

from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.denoising import denoise
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.steps.step_rule import transition_log_prob

EDGE = 8
"""Edge of the probe's latents in cells, unless the model's own is smaller: such a pass costs next to nothing."""


@torch.no_grad()
def probe_log_prob(policy: Policy, config: AlignConfig) -> float:
    """Log-prob, in nats per latent element, of a fixed transition between fixed latents, half-way down the schedule.

    A checksum proves that the tensors are those of the learner; the probe proves that they give the same results:
    other kernels, another precision or adapters that are switched off change it.
    """
    family, edge = policy.family, min(EDGE, policy.family.native_cells)
    shape = (1, *family.latent_shape(edge, edge))
    latents, masked, next_latents = (
        noise_like(shape, "canary", name).to(policy.device) for name in ("latents", "masked image", "next latents")
    )
    mask = torch.ones_like(latents[:, :1])
    condition = family.join_condition(mask, masked)
    schedule, step = family.schedule(config.num_inference_steps, (edge, edge)), config.num_inference_steps // 2
    transition = denoise(
        lambda x, timestep: policy.predict(x, timestep, condition),
        latents,
        torch.full((1,), step),
        schedule,
        config.eta,
    )
    return float(transition_log_prob(transition, next_latents, mask))
