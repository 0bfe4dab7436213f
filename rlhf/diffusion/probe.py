"""One transition whose log-prob tells whether two processes hold the same policy, and compute alike."""

import torch

from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import noise_like
from rlhf.diffusion.steps.ddim import make_schedule, transition_log_prob, transition_mean

EDGE = 16
"""Edge of the canary's latents, where the model's own are not smaller: a forward pass that costs next to nothing."""


@torch.no_grad()
def canary_log_prob(policy: Policy, config: AlignConfig) -> float:
    """Log-prob, in nats per latent element, of a fixed transition between fixed latents, half-way down the schedule.

    A checksum proves that the tensors are those of the learner; this proves that the same comes of them:
    other kernels, another precision or adapters that are switched off change it.
    """
    edge = min(EDGE, int(policy.unet.config.sample_size))
    schedule, step = make_schedule(policy.scheduler, config.num_inference_steps), config.num_inference_steps // 2
    shape = (1, policy.latent_channels, edge, edge)
    latents, masked, next_latents = (
        noise_like(shape, "canary", name).to(policy.device) for name in ("latents", "masked image", "next latents")
    )
    index, mask = torch.full((1,), step), torch.ones_like(latents[:, :1])
    timestep = schedule.timesteps[index].to(policy.device)
    output = policy.predict(latents, timestep, torch.cat([mask, masked], dim=1))
    mean, std_dev_t = transition_mean(output, latents, index, schedule, config.eta)
    return float(transition_log_prob(mean, std_dev_t, next_latents, mask))
