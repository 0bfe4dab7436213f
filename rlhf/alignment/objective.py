"""What an algorithm is asked for, and what it is given and gives in training."""

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
    """float32 [B]."""
    trust_weights: torch.Tensor
    """float32 [B], divided by the mean over the whole update."""
    weight: float = 1.0
    """Of this micro-batch in the mean over all; 0 where it only fills up a rank."""


@dataclass(frozen=True, kw_only=True)
class PassLoss:
    """The outcome of one pass of a micro-batch through the network."""

    loss: torch.Tensor
    """Scalar, with the gradient."""
    disagreement: float
    """Largest over the samples: 0 where learner and samplers have the same policy and compute alike."""
    figures: dict[str, float]
    """Means over the samples, for the metrics; `kl_to_base` among them."""


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
    """What training minimises."""

    compute_loss: LossFunction
    disagreement: str
    """Name of `PassLoss.disagreement` in the metrics."""
    old_policy_decay: Callable[[AlignConfig, int], float | None]
    """Share of the old policy in itself after so many updates; None where samplers act with the trained weights."""


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What a file of `rlhf.alignment.algorithms` chooses."""

    plan_rollout: Callable[[AlignConfig, int, int], RolloutPlan]
    """Which steps are run, random, and trained, by configuration, update and seed alone."""
    compute_advantages: Callable[[torch.Tensor, AlignConfig], torch.Tensor]
    """Rewards [P, S] of P prompts to advantages [P, S]."""
    compares_within_prompts: bool
    """Whether advantages compare the samples of a prompt, or the whole batch."""
    passes_per_batch: Callable[[AlignConfig], int]
    """Number of passes of each micro-batch through the network in training."""
    objective: Objective
