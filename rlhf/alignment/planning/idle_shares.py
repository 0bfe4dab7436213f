"""Who waits for whom in a run: a simulation of its updates from the cost of one image in each role."""

import heapq
import random
from dataclasses import dataclass

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig, RunConfig

JITTER = 0.05
"""Largest deviation of a micro-batch's time from the mean, as a share."""
UPDATES = 50


@dataclass(frozen=True, kw_only=True)
class ImageCosts:
    """What one image costs one process of each role, in seconds or in any other unit."""

    step: float
    """One denoising step."""
    ends: float
    """Decoding it, and its part of encoding its prompt."""
    score: float
    train: float
    """One pass of training, with the base policy's."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Means over simulated updates, in the unit of the costs."""

    update: float
    """One update after another: rollout and training take turns, or overlap if `align.max_staleness` lets them."""
    rollout: float
    training: float
    idle: dict[str, float]
    """Share of a role's time in which it waits; negative for a scorer that is asked for more than its fraction."""


def simulate(config: RunConfig, costs: ImageCosts) -> Balance:
    """Simulates `UPDATES` updates of the plans that the run itself would make; idle samplers take the next task."""
    align, cluster = config.align, config.cluster
    images = align.prompts_per_update * align.samples_per_prompt
    tasks, ranks = images // align.micro_batch_size, cluster.learners
    trained = images * algorithm_of(align).passes_per_batch(align) * align.epochs_per_update * costs.train
    training = trained * (-(-tasks // ranks) * ranks / tasks) / ranks  # Fillers make all shares equally long.
    if align.algorithm == "dpo":
        return Balance(update=training, rollout=0.0, training=training, idle={"learner": 0.0})
    total = sampled = rollouts = 0.0
    for update in range(UPDATES):
        mean = _task_cost(align, update, config.seed, costs)
        times = [mean * jitter(JITTER, update, (str(task),)) for task in range(tasks)]
        rollout = best_seconds(times, cluster.samplers)
        total += max(rollout, training) if align.max_staleness else rollout + training
        sampled, rollouts = sampled + sum(times), rollouts + rollout
    gpus = cluster.gpus_per_actor if cluster.gpus_per_scorer is None else cluster.gpus_per_scorer
    scored = UPDATES * images * costs.score / (cluster.scorers * (gpus or 1.0))
    return Balance(
        update=total / UPDATES,
        rollout=rollouts / UPDATES,
        training=training,
        idle={
            "sampler": 1 - sampled / (cluster.samplers * total),
            "scorer": 1 - scored / total,
            "learner": 1 - UPDATES * trained / (ranks * total),
        },
    )


def _task_cost(align: AlignConfig, update: int, seed: int, costs: ImageCosts) -> float:
    """Cost of a micro-batch: samples of a group are one image until the first random step."""
    plan, images = algorithm_of(align).plan_rollout(align, update, seed), align.micro_batch_size
    first = min(plan.stochastic_steps, default=0) if plan.shares_initial_noise else 0
    shared = sum(step < first for step in plan.steps)
    alone = len(plan.steps) - shared + plan.noised_steps
    return images * (alone * costs.step + costs.ends) + images / align.samples_per_prompt * shared * costs.step


def jitter(largest: float, update: object, names: tuple[str, ...]) -> float:
    """The factor, within 1 +/- `largest`, by which a task's time differs from the mean; it depends on its names."""
    return 1 + largest * random.Random(f"{update} {names}").uniform(-1, 1)


def best_seconds(seconds: list[float], samplers: int) -> float:
    """Returns the shortest duration of an update: idle samplers take the next micro-batch at once, scoring is free."""
    free_at = [0.0] * samplers
    for duration in seconds:
        heapq.heappush(free_at, heapq.heappop(free_at) + duration)
    return max(free_at)
