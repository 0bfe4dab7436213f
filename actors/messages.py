"""The records that travel between Ray processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.storage.checksum import checksum

if TYPE_CHECKING:
    import torch

    from rlhf.rewards.scores import Scores


@dataclass(frozen=True, kw_only=True)
class WeightsNotice:
    """A published policy version; every rollout call carries one, so a restarted sampler catches up."""

    version: int
    weights: list[ray.ObjectRef]
    """One reference to the trained tensors by name, as NumPy's arrays, which all samplers of a node read from shared
    memory; in a list, so that the reference travels."""
    checksum: str
    canary: float | None = None
    """The learner's log-prob of the canary under these weights, where samplers shall compute theirs."""

    @classmethod
    def publish(
        cls, weights: "Mapping[str, torch.Tensor]", version: int, canary: float | None = None
    ) -> "WeightsNotice":
        """Put weights [on the CPU, in float32] into the object store: once, since samplers fetch from one another."""
        arrays = {name: tensor.numpy() for name, tensor in weights.items()}
        return cls(version=version, weights=[ray.put(arrays)], checksum=checksum(arrays), canary=canary)


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
    """One reference to rows of the table of prompts by id, of these and maybe others; in a list, so that it travels."""
    samples_per_prompt: int
    plan: RolloutPlan
    seed_key: tuple[object, ...]
    first_sample: int = 0
    """Number of each prompt's first sample, on which their noise depends."""


@dataclass(frozen=True, kw_only=True)
class RolloutReceipt:
    """What a sampler says of a finished task; images and trajectories stay in the object store."""

    prompt_ids: tuple[str, ...]
    version: int
    checksum: str
    """As acknowledged."""
    duration_s: float
    forward_images: int
    """Images that went through the UNet, over all steps."""


@dataclass(frozen=True, kw_only=True)
class BatchShare:
    """One micro-batch for one learner rank."""

    trajectories: list[ray.ObjectRef]
    """One reference, in a list so that it travels unresolved."""
    images: list[ray.ObjectRef]
    """One reference to uint8 [B, 3, H, W], or none where they have been dropped."""
    advantages: "torch.Tensor"
    trust_weights: "torch.Tensor"
    prompt_ids: tuple[str, ...]
    scores: "dict[str, Scores]"
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
