"""How long roles of the GPU run files wait: `python -m benchmarks.scaling.run_balance` simulates them.

Time is counted in forward passes of one image, which every GPU takes alike: relative times decide who waits, so the
table needs no GPU. Stated are the costs below. A micro-batch takes up to JITTER more or less, like the stand-ins of
benchmarks.scaling, and idle samplers take the next one at once. With `align.max_staleness` above 0 the rollout of an
update lasts as long as the training on the one before, or longer; otherwise they take turns.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scaling.__main__ import best_seconds
from benchmarks.scaling.stand_ins import Pace, batch_seconds
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.config_files import load_config
from rlhf.config.run_config import RunConfig

RUNS = Path(__file__).parents[2] / "cluster" / "runs"
GPU_RUNS = ("one_node_8gpu", "multi_node_64gpu", "spot", "prefpaint_paper")
DECODE = 3.0
"""Encoding and decoding an image by the VAE, in forward passes of the denoiser."""
SCORE = 0.25
"""Scoring an image by CLIP ViT-B/32, in forward passes of SD 1.5 at 512 px."""
XL = 8.0
"""A forward pass of SDXL at 1024 px, in forward passes of SD 1.5 at 512 px."""
BACKWARD = 2.0
"""A backward pass, in forward passes."""
JITTER = 0.05
UPDATES = 50


@dataclass(frozen=True, kw_only=True)
class IdleShares:
    """Share of its GPUs' time in which a role waits, over all updates."""

    sampler: float
    scorer: float
    learner: float


def simulate(config: RunConfig) -> IdleShares:
    """Returns the idle shares over `UPDATES` updates of the plans that the run itself would make."""
    align, cluster = config.align, config.cluster
    images = align.prompts_per_update * align.samples_per_prompt
    tasks, ranks = images // align.micro_batch_size, cluster.learners
    trained = images * training_passes(config)
    filled = -(-tasks // ranks) * ranks / tasks  # Fillers make the shares of all ranks equally long.
    score = images * SCORE / (XL if config.prompts.size_px > 512 else 1.0)
    total = sampled = 0.0
    for update in range(UPDATES):
        pace = Pace(batch_s=sampling_passes(config, update), jitter=JITTER, score_s=0.0, edge_px=0)
        times = [batch_seconds(pace, update, (str(task),)) for task in range(tasks)]
        rollout, training = best_seconds(times, cluster.samplers), trained * filled / ranks
        total += max(rollout, training) if align.max_staleness else rollout + training
        sampled += sum(times)
    gpus = cluster.scorers * (cluster.gpus_per_scorer or cluster.gpus_per_actor)
    return IdleShares(
        sampler=1 - sampled / (cluster.samplers * total),
        scorer=1 - UPDATES * score / (gpus * total),
        learner=1 - UPDATES * trained / (ranks * total),
    )


def sampling_passes(config: RunConfig, update: int) -> float:
    """Returns the forward passes of a micro-batch: samples of a group are one image until the first random step."""
    align = config.align
    plan, images = algorithm_of(align).plan_rollout(align, update, config.seed), align.micro_batch_size
    shared = min(plan.stochastic_steps, default=0) if plan.shares_initial_noise else 0
    alone = len(plan.steps) - shared
    return images * (alone + DECODE) + images / align.samples_per_prompt * shared


def training_passes(config: RunConfig) -> float:
    """Returns the forward passes that training on one image costs."""
    align = config.align
    base, again = float(align.kl_weight > 0), float(align.gradient_checkpointing)
    return algorithm_of(align).passes_per_batch(align) * (1 + BACKWARD + base + again)


def main() -> None:
    """Prints the table of docs/cluster.md."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| run file | samplers idle | scorers idle | learners idle |\n| --- | --- | --- | --- |")
    for name in GPU_RUNS:
        idle = simulate(load_config(RUNS / f"{name}.yaml"))
        print(f"| {name} | {idle.sampler:.1%} | {idle.scorer:.1%} | {idle.learner:.1%} |")


if __name__ == "__main__":
    main()
