"""The records of a rollout; importing them imports no torch, so that whoever only passes them on starts at once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """Which of the denoising steps are random, and which are kept for training."""

    num_inference_steps: int
    eta: float
    """DDIM's eta at the stochastic steps; all others are deterministic."""
    stochastic_steps: frozenset[int]
    trained_steps: tuple[int, ...] = ()
    """Ascending; a subset of the stochastic ones."""
    shares_initial_noise: bool = False
    """Samples of a prompt start from the same noise, and run as one until the first random step."""
    log_prob_over: str = "hole"
    """`hole`, or `all` latent elements."""
    first_step: int = 0
    """Above 0 the sample starts there, from the noised original (SDEdit, arXiv:2108.01073): for candidates."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """What training needs of some prompts' samples, prompt by prompt: B = prompts x samples_per_prompt."""

    condition: "torch.Tensor"
    """float32 [B, 5, h, w]: the UNet's mask and masked-image latents."""
    latent_mask: "torch.Tensor"
    """float32 [B, 1, h, w]: 1 where log-probs and KL look: in cells that touch the hole, or in all."""
    latents: "torch.Tensor"
    """float32 [K, B, 4, h, w]: before each trained step."""
    next_latents: "torch.Tensor"
    """float32 [K, B, 4, h, w]: after it."""
    old_log_prob: "torch.Tensor"
    """float32 [K, B], nats per latent element, under the weights that sampled."""
    step_indices: tuple[int, ...]
    """[K]: positions of the trained steps in the schedule."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Finished samples of some prompts, prompt by prompt."""

    images: "torch.Tensor"
    """float32 [B, 3, H, W], composited: known pixels are those of the prompt."""
    trajectories: Trajectories
