"""Images of a policy for other stages, task by task: by whom they are painted, they need not know."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhf.data.prompts import PromptRow, decode_prompt
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.storage.images import encode_png, tensor_to_image

TakePrompts = Callable[[Sequence[str]], list[PromptRow]]
"""Rows of prompts by their ids, in that order; read when they are asked for."""


@dataclass(frozen=True, kw_only=True)
class SamplingTask:
    """Samples that are denoised together, so that their bits depend on the task alone."""

    number: int
    """Place among the tasks of the stage."""
    prompt_ids: tuple[str, ...]
    sample_indices: range
    """Of every prompt."""
    plan: RolloutPlan
    seed_key: tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class SampledTask:
    """A task that is done."""

    task: SamplingTask
    """Without the prompts that had to be put aside."""
    images: list[bytes]
    """PNG, prompt by prompt; they lose nothing, since samples lie on the 8-bit grid."""


class Sampler(Protocol):
    """Whoever holds a policy's weights and paints with them."""

    version: int
    """Of the policy."""

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        """All tasks, in any order, each as soon as it is done."""


class InProcessSampler:
    """Paints in this process, one task after another."""

    def __init__(self, policy: Policy, take: TakePrompts) -> None:
        self.version = policy.version
        self._policy, self._take = policy, take

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        """All tasks, in their order."""
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
    """Images [B, 3, H, W] in [-1, 1] as PNG."""
    return [encode_png(tensor_to_image(image)) for image in images]
