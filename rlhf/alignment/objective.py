"""The interface of an algorithm: its plan of a rollout, its advantages, and its loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.diffusion.trajectories import Recording, RolloutPlan


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """A micro-batch of finished, scored samples."""

    trajectories: Recording
    advantages: torch.Tensor
    """float32 [B], from the rewards."""
    trust_weights: torch.Tensor
    """float32 [B], divided by the mean over the whole update."""
    weight: float = 1.0
    """Weight of this micro-batch's mean in the mean over those of all ranks, which is then the mean over all samples; 0
    for a filler on a rank that has fewer."""


@dataclass(frozen=True, kw_only=True)
class PassLoss:
    """The outcome of one pass of a micro-batch through the network."""

    loss: torch.Tensor
    """Scalar, with the gradient."""
    disagreement: float
    """Largest disagreement over the samples; 0 if learner and samplers hold the same policy and compute alike."""
    figures: dict[str, float]
    """Means over the samples for the metrics, `kl_to_base` among them."""


class LossFunction(Protocol):
    """Loss of one pass of a micro-batch."""

    def __call__(
        self,
        output: torch.Tensor,
        base_output: torch.Tensor | None,
        batch: TrainingBatch,
        k: int,
        schedule: Schedule,
        config: AlignConfig,
    ) -> PassLoss:
        """Loss of the k-th pass, from the network's `output` and the base model's `base_output`, both [B, C, h, w].

        Without `base_output` the KL is 0.
        """


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The quantity that training minimises."""

    compute_loss: LossFunction
    disagreement: str | None
    """Name of `PassLoss.disagreement` in the metrics; None if no sampler took part."""
    old_policy_decay: Callable[[AlignConfig, int], float | None]
    """EMA decay of the sampling ("old") policy after update n; None if samplers use the current weights."""
    reads_base: bool = False
    """Whether the loss reads the base model's output even without a KL."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The choices that a file of `rlhf.alignment.algorithms` makes."""

    plan_rollout: Callable[[AlignConfig, int, int], RolloutPlan]
    """Plans the steps to run, to randomise and to train, from configuration, update and seed alone."""
    compute_advantages: Callable[[torch.Tensor, AlignConfig], torch.Tensor]
    """Turns rewards [P, S] of P prompts into advantages [P, S]."""
    compares_within_prompts: bool
    """Whether advantages compare the samples of a prompt, or the whole batch."""
    passes_per_batch: Callable[[AlignConfig], int]
    """Number of passes of each micro-batch through the network in training."""
    objective: Objective
