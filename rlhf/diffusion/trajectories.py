"""The records of a rollout. Importing them imports no torch, so that processes that only pass them on start fast."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from rlhf.diffusion.families.family import TextEmbedding


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """Which of the denoising steps are random, and which are kept for training."""

    num_inference_steps: int
    eta: float
    """Noise level of the stochastic steps, as the step rule defines it; all others are deterministic."""
    stochastic_steps: frozenset[int]
    trained_steps: tuple[int, ...] = ()
    """Ascending; a subset of the stochastic ones."""
    shares_initial_noise: bool = False
    """Samples of a prompt start from the same noise, and run as one until the first random step."""
    keeps_means: bool = False
    """Whether the means of the trained steps' Gaussians are kept."""
    log_prob_over: str = "hole"
    """`hole`, or `all` latent elements."""
    visited_steps: tuple[int, ...] | None = None
    """Positions in the schedule that are run, ascending; each step leads to the next one's noise level. None: all."""
    second_order_steps: frozenset[int] = frozenset()
    """Deterministic steps that are of second order even if the model's are of first."""
    noised_steps: int = 0
    """Number of positions in the schedule at which each finished sample is noised again, drawn without replacement."""
    noised_range: int | None = None
    """Number of positions, from the first, that these are drawn from; None: all."""
    first_step: int = 0
    """Above 0, the sample starts there from the noised original (SDEdit, arXiv:2108.01073): for candidates."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Positions in the schedule that are run."""
        return self.visited_steps or tuple(range(self.first_step, self.num_inference_steps))


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Transitions of some prompts' samples to train on, prompt by prompt: B = prompts x samples_per_prompt."""

    condition: "torch.Tensor"
    """float32 [B, K, h, w]: hole and masked image, as the network reads them."""
    latent_mask: "torch.Tensor"
    """float32 [B, 1, h, w]: 1 in the cells that log-probs and KL count: those that touch the hole, or all."""
    latents: "torch.Tensor"
    """float32 [K, B, C, h, w]: before each trained step."""
    next_latents: "torch.Tensor"
    """float32 [K, B, C, h, w]: as it drew them, before a known image takes its place."""
    old_log_prob: "torch.Tensor"
    """float32 [K, B], nats per latent element, under the weights that sampled."""
    step_indices: tuple[int, ...]
    """[K]: positions of the trained steps in the schedule."""
    old_mean: "torch.Tensor | None" = None
    """float32 [K, B, C, h, w]: means of the Gaussians that `next_latents` were drawn from, if the plan keeps them."""
    text: "TextEmbedding | None" = None
    """One for all samples, or one for each prompt; None: the empty text."""

    def steps_at(self, k: int) -> "torch.Tensor":
        """int64 [B], on the CPU: positions in the schedule of the k-th trained step."""
        import torch

        return torch.full((len(self.condition),), self.step_indices[k])


@dataclass(frozen=True, kw_only=True)
class NoisedSamples:
    """Finished samples, noised again, to train by the forward process; B as in `Trajectories`."""

    condition: "torch.Tensor"
    """float32 [B, K, h, w]: hole and masked image, as the network reads them."""
    latent_mask: "torch.Tensor"
    """float32 [B, 1, h, w]: 1 in the cells that errors and KL count."""
    clean_latents: "torch.Tensor"
    """float32 [B, C, h, w]: the samples."""
    latents: "torch.Tensor"
    """float32 [K, B, C, h, w]: the samples, noised."""
    steps: "torch.Tensor"
    """int64 [K, B]: positions in the schedule, whose noise level they have."""
    old_prediction: "torch.Tensor | None"
    """float32 [K, B, C, h, w]: the network's predictions for them, with the weights that sampled; None for samples
    that no policy of this run made."""
    text: "TextEmbedding | None" = None
    """As in `Trajectories`."""

    def steps_at(self, k: int) -> "torch.Tensor":
        """int64 [B], on the CPU: positions in the schedule of the k-th noising."""
        return self.steps[k]


Recording = Trajectories | NoisedSamples
"""The part of a rollout that is trained on: K passes over B samples."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Finished samples of some prompts, prompt by prompt."""

    images: "torch.Tensor"
    """float32 [B, 3, H, W], composited: known pixels are those of the prompt."""
    trajectories: Recording
    forward_images: int
    """Number of images that passed through the network, over all steps."""
