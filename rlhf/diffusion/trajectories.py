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
    visited_steps: tuple[int, ...] | None = None
    """Positions in the schedule at which the UNet is asked, ascending; each step leads to the next one's noise level.
    None: all."""
    second_order_steps: frozenset[int] = frozenset()
    """Deterministic steps that DPM-Solver++(2M) takes, with the prediction of the one before; all others are DDIM's."""
    noised_steps: int = 0
    """Finished samples are noised again, each at so many positions in the schedule, drawn without replacement."""
    first_step: int = 0
    """Above 0 the sample starts there, from the noised original (SDEdit, arXiv:2108.01073): for candidates."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Positions in the schedule that are run."""
        return self.visited_steps or tuple(range(self.first_step, self.num_inference_steps))


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

    def steps_at(self, k: int) -> "torch.Tensor":
        """int64 [B], on the CPU: positions in the schedule of the k-th trained step."""
        import torch

        return torch.full((len(self.condition),), self.step_indices[k])


@dataclass(frozen=True, kw_only=True)
class NoisedSamples:
    """What training by the forward process needs: finished samples, noised again; B as in `Trajectories`."""

    condition: "torch.Tensor"
    """float32 [B, 5, h, w]: the UNet's mask and masked-image latents."""
    latent_mask: "torch.Tensor"
    """float32 [B, 1, h, w]: 1 where errors and KL look."""
    clean_latents: "torch.Tensor"
    """float32 [B, 4, h, w]: the samples."""
    latents: "torch.Tensor"
    """float32 [K, B, 4, h, w]: the samples, noised."""
    steps: "torch.Tensor"
    """int64 [K, B]: positions in the schedule, whose noise level they have."""
    old_prediction: "torch.Tensor"
    """float32 [K, B, 4, h, w]: what the UNet said of them, with the weights that sampled."""

    def steps_at(self, k: int) -> "torch.Tensor":
        """int64 [B], on the CPU: positions in the schedule of the k-th noising."""
        return self.steps[k]


Recording = Trajectories | NoisedSamples
"""What is kept of a rollout to be trained on: K passes over B samples."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Finished samples of some prompts, prompt by prompt."""

    images: "torch.Tensor"
    """float32 [B, 3, H, W], composited: known pixels are those of the prompt."""
    trajectories: Recording
    forward_images: int
    """Images that went through the UNet for it, over all steps."""
