"""The records that travel between Ray processes."""

from dataclasses import dataclass
from typing import Any

import ray
import torch

from rlhf.rewards.scores import Scores
from rlhf.rollout import RolloutPlan


@dataclass(frozen=True, kw_only=True)
class WeightsNotice:
    """A published policy version; every rollout call carries one, so a restarted sampler catches up."""

    version: int
    weights: list[ray.ObjectRef]
    """One reference to the trained tensors by name; in a list, so that the reference travels."""
    checksum: str
    canary: float | None = None
    """The learner's log-prob of the canary under these weights, where samplers shall compute theirs."""


@dataclass(frozen=True, kw_only=True)
class WeightsAck:
    """What a sampler says of the weights that its UNet holds."""

    version: int
    checksum: str
    """Computed from the tensors of the UNet, not from the message."""
    canary: float | None


@dataclass(frozen=True, kw_only=True)
class RolloutTask:
    """Work for one sampler call: a micro-batch of whole groups."""

    prompt_ids: tuple[str, ...]
    prompts: list[ray.ObjectRef]
    """One reference to prompts by id, of these and maybe others; in a list, so that the reference travels."""
    samples_per_prompt: int
    plan: RolloutPlan
    seed_key: tuple[object, ...]
    first_sample: int = 0
    """Number of each prompt's first sample, on which their noise depends."""


@dataclass(frozen=True, kw_only=True)
class RolloutReceipt:
    """What a sampler says of a finished task; the trajectories themselves stay in the object store."""

    prompt_ids: tuple[str, ...]
    version: int
    checksum: str
    """As acknowledged."""
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class BatchShare:
    """One micro-batch for one learner rank."""

    trajectories: list[ray.ObjectRef]
    """One reference, in a list so that it travels unresolved."""
    advantages: torch.Tensor
    trust_weights: torch.Tensor
    prompt_ids: tuple[str, ...]
    scores: dict[str, Scores]
    """By reward, as they were before they were combined."""
    weight: float = 1.0
    """In the mean over the global batch; 0 fills up a rank that has fewer micro-batches than others."""


@dataclass(frozen=True, kw_only=True)
class UpdateWork:
    """All micro-batches of an update, by rank, and the coordinator's figures."""

    shares: list[list[BatchShare]]
    metrics: dict[str, Any]
    checksum: str
    """Of the weights that sampled."""
