"""The interface of a step rule, and the Gaussian of one denoising step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch


@dataclass(frozen=True, kw_only=True)
class Transition:
    """The Gaussian that one denoising step draws the next latents from."""

    mean: torch.Tensor
    """float32 [B, C, h, w]."""
    std_dev_t: torch.Tensor
    """float32 [B, 1, 1, 1]; 0 for a deterministic step."""
    clean: torch.Tensor
    """float32 [B, C, h, w]: the finished latents, as this step predicts them."""

    def split(self, sizes: Sequence[int]) -> "list[Transition]":
        """The transitions of `sizes` consecutive images each."""
        parts = zip(*(part.split(list(sizes)) for part in (self.mean, self.std_dev_t, self.clean)), strict=True)
        return [Transition(mean=mean, std_dev_t=std, clean=clean) for mean, std, clean in parts]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a deterministic step has predicted, for the steps after it."""

    step: int
    """Position in the schedule."""
    latents: torch.Tensor
    """float32 [B, C, h, w], before the step."""
    clean: torch.Tensor
    """float32 [B, C, h, w]: the finished latents, as predicted from them."""


class Schedule(Protocol):
    """The noise levels that a number of denoising steps pass through, and the rule of each step."""

    @property
    def timesteps(self) -> torch.Tensor:
        """[T], descending: the time that the network is told at each position; int64 or float32."""

    @property
    def solver_order(self) -> int:
        """Number of predictions that a deterministic step uses, if as many steps before it were deterministic."""

    def transition(
        self, model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor, eta: float
    ) -> Transition:
        """The step from `latents` [B, C, h, w] at positions `step_index` (int64 [B]) with noise level `eta`."""

    def predicted_clean(
        self, model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor
    ) -> torch.Tensor:
        """The finished latents [B, C, h, w] that a prediction for `latents` implies."""

    def target_output(self, clean: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """The network's output for `latents` that implies the finished latents `clean`: what training aims at."""

    def multistep(self, predictions: Sequence[Prediction]) -> torch.Tensor:
        """The next latents by a deterministic step of higher order: from its own prediction and those before it.

        The latest comes first; there are two or more.
        """

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] at the noise levels of positions `step_index`."""

    def add_noise_after(self, clean: torch.Tensor, noise: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] at the noise levels that the steps at positions `step_index` end at."""

    def skip_to(self, visited: Sequence[int]) -> Self:
        """The schedule that runs only the positions `visited` [ascending]; each leads to the next one's noise level."""

    def at_rows(self, rows: Sequence[tuple[Self, int]]) -> Self:
        """A schedule whose position i is position k of another schedule, for each (schedule, k) in `rows`."""


def per_image(levels: torch.Tensor, step_index: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Levels [T] at positions [B], as [B, 1, 1, 1] of the latents' type and device."""
    return levels[step_index].view(-1, 1, 1, 1).to(latents)


def skip_levels(next_levels: torch.Tensor, visited: Sequence[int]) -> torch.Tensor:
    """The levels [T] that steps end at if only the positions `visited` [ascending] are run: the next one's own."""
    after = next_levels.clone()
    ends = [following - 1 for following in visited[1:]] + [len(after) - 1]
    after[list(visited)] = next_levels[ends]
    return after


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the elements where mask is 1. Shapes [B, C, h, w], [B, 1, h, w]; returns [B]."""
    weights = mask.expand_as(values)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def transition_log_prob(step: Transition, next_latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-density of `next_latents` under N(mean, std_dev_t^2 I), over the elements where `mask` is 1.

    Shapes: next_latents [B, C, h, w]; mask [B, 1, h, w]. Returns [B], in nats per latent element: the mean over
    those elements, so that `clip_range` means the same for a small hole and a large one.

    Raises ValueError if a deviation is 0: a deterministic step has no density.
    """
    mean, std_dev_t = step.mean, step.std_dev_t
    if bool((std_dev_t <= 0).any()):
        raise ValueError("a deterministic step has no log-density; use eta > 0")
    log_density = -0.5 * ((next_latents - mean) / std_dev_t) ** 2 - std_dev_t.log() - 0.5 * math.log(2 * math.pi)
    return masked_mean(log_density, mask)


def transition_kl(step: Transition, base_mean: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL(policy || base) of one step, over the elements where `mask` is 1: Gaussians of the same deviation.

    Shapes: base_mean [B, C, h, w]; mask [B, 1, h, w]. Returns [B], in nats per latent element. A step that ends
    without noise has no density and counts as 0.
    """
    std_dev_t = step.std_dev_t.masked_fill(step.std_dev_t == 0, torch.inf)
    return masked_mean(((step.mean - base_mean) / std_dev_t) ** 2 / 2, mask)
