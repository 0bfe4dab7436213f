"""Measures the cost of training: `python -m benchmarks.suite.update`.

Each row is one update of `tiny-sd` in float32 in one process: 16 images in one micro-batch, with two trained
steps each, so 32 transitions. Unless a row says otherwise, it uses DeepSpeed, LoRA and a KL to the base policy.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.device_measures import PassClock
from benchmarks.measure import Figures, Spread, interleave, peak_megabytes, report_alone, spread
from benchmarks.suite.rollout import KEY, MODEL, PROMPTS, SAMPLES, make_prompts
from benchmarks.training_loops import plain_update, process_group
from rlhf.alignment.algorithms import grpo
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.rollout import rollout

TRANSITIONS = 2 * PROMPTS * SAMPLES
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {},
    "LoRA, no KL": {"kl_weight": 0.0},
    "LoRA, gradient checkpointing": {"gradient_checkpointing": True},
    "LoRA, ZeRO 1": {"zero_stage": 1},
    "LoRA, ZeRO 2": {"zero_stage": 2},
    "LoRA, ZeRO 3": {"zero_stage": 3},
    "full": {"trainable": "full"},
    "full, gradient checkpointing": {"trainable": "full", "gradient_checkpointing": True},
}
PLAIN = "plain PyTorch, the same loss, LoRA"


def make_config(**changes: Any) -> AlignConfig:
    """Returns the defaults of `rlhf align` for one micro-batch."""
    count = PROMPTS * SAMPLES
    return AlignConfig(samples_per_prompt=SAMPLES, prompts_per_update=PROMPTS, micro_batch_size=count, **changes)


def roll_out(config: AlignConfig) -> TrainingBatch:
    """Returns a micro-batch as samplers make it, with advantages of random sign."""
    policy = load_policy(MODEL)
    make_trainable(policy, "lora", rank=config.lora_rank, targets=config.lora_targets, seed=0)
    plan = grpo.plan_rollout(config, 0, 0)
    kept = rollout(policy, make_prompts(), plan, sample_indices=range(SAMPLES), seed_key=KEY).trajectories
    advantages = torch.randn(PROMPTS * SAMPLES, generator=torch.Generator().manual_seed(0))
    return TrainingBatch(trajectories=kept, advantages=advantages, trust_weights=torch.ones(PROMPTS * SAMPLES))


def deepspeed_update(batch: TrainingBatch, **changes: Any) -> Callable[[], object]:
    """Returns one update of our learner; ratios are not checked, since the weights change from call to call."""
    config = make_config(**changes)
    learner = Learner(load_policy(MODEL), config, micro_batches=config.window_size, seed=0)
    return lambda: learner.train([batch], is_on_policy=False)


def plain(batch: TrainingBatch) -> Callable[[], object]:
    """Returns the same update in plain PyTorch."""
    return plain_update(load_policy(MODEL), [batch], make_config())


def make_alternative(name: str) -> Callable[[], object]:
    """Returns one of VARIANTS, or PLAIN."""
    batch = roll_out(make_config())
    return plain(batch) if name == PLAIN else deepspeed_update(batch, **VARIANTS[name])


def share_in_model(rounds: int) -> Spread:
    """Returns the share of an update's time that is spent in the UNet's forward and backward passes."""
    config, batch = make_config(), roll_out(make_config())
    learner = Learner(load_policy(MODEL), config, micro_batches=config.window_size, seed=0)
    clock = PassClock(torch.device("cpu"))
    clock.watch(learner.policy.network)
    learner.engine.backward = clock.timed(learner.engine.backward)
    shares = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        learner.train([batch], is_on_policy=False)
        shares.append(clock.read() / (time.perf_counter() - started))
    return spread(shares[1:])


def measure(rounds: int) -> Figures:
    """Measures time and memory of all variants."""
    with process_group():
        batch = roll_out(make_config())
        alternatives = {name: deepspeed_update(batch, **changes) for name, changes in VARIANTS.items()}
        seconds = interleave(alternatives | {PLAIN: plain(batch)}, rounds)
        shares = share_in_model(rounds)
    return {
        "ms_per_transition": {name: spread([1e3 * s / TRANSITIONS for s in found]) for name, found in seconds.items()},
        "added_mb": {name: peak_megabytes("benchmarks.suite.update", name) for name in seconds},
        "share_in_forward_and_backward": shares,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", help="run one alternative and print its memory")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    if given.alone:
        with process_group():
            report_alone(lambda: make_alternative(given.alone))
    else:
        print(json.dumps(measure(given.rounds), indent=2))
