"""Tasks on their way through a run, their results, and the checks of both."""

from dataclasses import dataclass

import ray
import torch

from actors.messages import RolloutReceipt, RolloutTask
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores


class PoisonPrompt(Exception):  # noqa: N818
    """A prompt kills its workers even when it is alone."""

    def __init__(self, prompt_id: str) -> None:
        super().__init__(prompt_id)
        self.prompt_id = prompt_id


@dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """The results of a task."""

    number: int
    """Place among the tasks of the run."""
    prompt_ids: tuple[str, ...]
    images: ray.ObjectRef | None
    """uint8 [B, 3, H, W] or PNG; None if they have been scored and dropped."""
    trajectories: ray.ObjectRef
    scores: dict[str, Scores]
    """Scores by reward; empty without scorers."""
    forward_images: int
    """Number of images that went through the network."""
    receipt: RolloutReceipt | None = None
    """Receipt of the sampler; None if there was none."""
    scorer_memory_bytes: int = 0
    """Most that the scorer had held; 0 without scorers."""


@dataclass(kw_only=True)
class Job:
    """A task in progress."""

    task: RolloutTask
    number: int = 0
    """Place among the tasks of the run."""
    is_trial: bool = False
    """A single prompt, run to see whether it kills its worker; its results are dropped."""
    deaths: int = 0
    trials: int = 0
    images: ray.ObjectRef | None = None
    trajectories: ray.ObjectRef | None = None
    forward_images: int = 0
    receipt: RolloutReceipt | None = None


def check_rewards(scores: dict[str, Scores], task: RolloutTask) -> None:
    """Raises UserError with prompt and reward if a reward or its bound is not finite."""
    for name, part in scores.items():
        columns = [c for c in (part.reward, part.uncertainty, part.trust_weight) if c is not None]
        is_finite = torch.isfinite(torch.stack(columns)).all(0)
        if not bool(is_finite.all()):
            first = int((~is_finite).nonzero()[0, 0])
            prompt_id = task.prompt_ids[first // task.samples_per_prompt]
            value = float(part.reward[first])
            raise UserError(f"align: the reward of prompt {prompt_id} is {value} (reward {name}); update refused")
