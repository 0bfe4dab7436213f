"""Samples images from a policy. Callers see one interface whether sampling runs in this process or on Ray."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhf.data.prompts import decode_prompt
from rlhf.data.rows import PromptRow
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.storage.images import encode_png, tensor_to_image

TakePrompts = Callable[[Sequence[str]], list[PromptRow]]
"""Reads the rows of prompts by id, in that order, when called."""


@dataclass(frozen=True, kw_only=True)
class SamplingTask:
    """Samples that are denoised together: their bits depend on the task alone."""

    number: int
    """Position among the tasks of the stage."""
    prompt_ids: tuple[str, ...]
    sample_indices: range
    """Numbers of the samples of every prompt."""
    plan: RolloutPlan
    seed_key: tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class SampledTask:
    """A finished task."""

    task: SamplingTask
    """The task, without prompts in quarantine."""
    images: list[bytes]
    """PNG files, prompt by prompt; PNG is lossless here, since samples are rounded to 8 bits."""


class Sampler(Protocol):
    """Holds a policy's weights and paints with them."""

    version: int
    """Version of the policy."""

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        """Yields every task as soon as it is done, in any order."""


class InProcessSampler:
    """Paints in this process, one task after another."""

    def __init__(self, policy: Policy, take: TakePrompts) -> None:
        self.version = policy.version
        self._policy, self._take = policy, take

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        """Yields every task, in order."""
        for task in tasks:
            done = rollout(
                self._policy,
                [decode_prompt(row) for row in self._take(task.prompt_ids)],
                task.plan,
                sample_indices=task.sample_indices,
                seed_key=task.seed_key,
            )
            yield SampledTask(task=task, images=to_png(done.images))


def to_png(images: torch.Tensor) -> list[bytes]:
    """Encodes images [B, 3, H, W] in [-1, 1] as PNG files."""
    return [encode_png(tensor_to_image(image)) for image in images]
