"""The records that travel between Ray processes; importing them imports no torch.

References lie in lists: Ray would resolve a bare reference on its way.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from rlhf.diffusion.trajectories import RolloutPlan

if TYPE_CHECKING:
    import torch

    from rlhf.rewards.scores import Scores


@dataclass(frozen=True, kw_only=True)
class RolloutTask:
    """Work for one sampler call: a micro-batch of whole groups."""

    prompt_ids: tuple[str, ...]
    prompts: list[ray.ObjectRef]
    """One reference to rows of the table of prompts by id, for these prompts and maybe others."""
    samples_per_prompt: int
    plan: RolloutPlan
    seed_key: tuple[object, ...]
    first_sample: int = 0
    """Number of each prompt's first sample, on which their noise depends."""
    trace: tuple[Path, int, str] | None = None
    """Run folder, number of the update and name of the process for a trace of this task; None for no trace."""


@dataclass(frozen=True, kw_only=True)
class RolloutReceipt:
    """A sampler's receipt for a finished task; images and trajectories stay in the object store."""

    prompt_ids: tuple[str, ...]
    version: int
    """Version of the weights that sampled."""
    checksum: str
    """Checksum of these weights, as acknowledged."""
    duration_s: float
    forward_images: int
    """Number of images that went through the network, over all steps."""
    memory_bytes: int = 0
    """Most that the sampler has held so far: on its GPU, or resident where it has none."""
    device_flops: float = 0.0
    """FLOP/s that the sampler's device can reach; 0 if that is not known."""


@dataclass(frozen=True, kw_only=True)
class ScoreReceipt:
    """A scorer's answer for a task."""

    scores: "dict[str, Scores]"
    """Scores by reward."""
    memory_bytes: int = 0
    """Most that the scorer has held so far: on its GPU, or resident where it has none."""


@dataclass(frozen=True, kw_only=True)
class BatchShare:
    """One micro-batch of B samples for one learner rank."""

    trajectories: list[ray.ObjectRef]
    """One reference to the recorded transitions."""
    images: list[ray.ObjectRef]
    """One reference to uint8 [B, 3, H, W], or none if they have been dropped."""
    advantages: "torch.Tensor"
    """float32 [B]."""
    trust_weights: "torch.Tensor"
    """float32 [B], divided by the mean over the update."""
    prompt_ids: tuple[str, ...]
    scores: "dict[str, Scores]"
    """Scores by reward, before they are combined."""
    weight: float = 1.0
    """Weight in the mean over the micro-batches of all ranks; 0 if the micro-batch only fills up a rank's share."""


@dataclass(frozen=True, kw_only=True)
class UpdateWork:
    """All micro-batches of an update, by rank, and the coordinator's metrics; stays on rank 0."""

    shares: list[list[BatchShare]]
    metrics: dict[str, float]
    checksum: str
    """Checksum of the weights that sampled."""


@dataclass(frozen=True, kw_only=True)
class UpdateNotice:
    """An update as rank 0 announces it to all ranks: small, whatever the batch."""

    shares: list[ray.ObjectRef]
    """Reference to each rank's list of BatchShare; a rank fetches its own only."""
    metrics: dict[str, float]
