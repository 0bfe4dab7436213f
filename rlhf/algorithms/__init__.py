"""One short file per algorithm: which steps are random and trained, and what counts as an advantage."""

from types import ModuleType

from rlhf.algorithms import grpo, prefpaint
from rlhf.config import AlignConfig


def algorithm_of(config: AlignConfig) -> ModuleType:
    """The module with `plan_rollout` and `compute_advantages` that the configuration names."""
    return {"grpo": grpo, "prefpaint": prefpaint}[config.algorithm]
