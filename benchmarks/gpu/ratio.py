"""Measures the ratio before an update at full size: `python -m benchmarks.gpu.ratio --precision bf16 --out FILE`.

A sampler's policy rolls out and a learner's, opened anew, replays the transitions; equal weights give a ratio of 1.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.device_measures import memory
from benchmarks.gpu.full_size_models import build_policy
from benchmarks.gpu.measuring import Job, make_config, make_prompts
from benchmarks.gpu.variants import PARTS, SCALES, TRAINED, Scale
from benchmarks.measure import Figures
from benchmarks.training_loops import process_group
from rlhf.alignment.algorithms import grpo
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.devices import resolve_device
from rlhf.diffusion.policy import Policy, make_trainable
from rlhf.diffusion.precision import hold_frozen
from rlhf.diffusion.rollout import rollout
from rlhf.storage.atomic_files import atomic_write_json


def measure(scale: Scale, device: torch.device, precision: str) -> Figures:
    """Returns the ratio error of an update of LoRA, and the learner's memory."""
    job = Job(part=PARTS["sd_training"], variant=TRAINED, scale=scale, device=device, rate=lambda _: 1.0, profile=None)
    # The bound is measured here, not kept.
    config = make_config(job).model_copy(update={"max_ratio_error": 1.0})

    def open_policy() -> Policy:
        policy = build_policy(job.architecture, device, precision)
        hold_frozen(policy.network, precision)
        return policy

    sampler, plan = open_policy(), grpo.plan_rollout(config, 0, 0)
    make_trainable(sampler, "lora", rank=config.lora_rank, targets=config.lora_targets, seed=0)
    samples = range(scale.samples)
    done = rollout(sampler, make_prompts(1, job.px), plan, sample_indices=samples, seed_key=("ratio",))
    advantages, trust = torch.randn(scale.samples), torch.ones(scale.samples)
    batch = TrainingBatch(trajectories=done.trajectories, advantages=advantages, trust_weights=trust)
    del sampler
    with process_group(device):
        learner = Learner(open_policy(), config, micro_batches=len(plan.trained_steps), seed=0)
        error = learner.train([batch])["ratio_error"]
    return {"precision": precision, "px": job.px, "ratio_error": error} | memory(device)


def main() -> None:
    """Measures one precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--size", choices=[*SCALES], default="full")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    atomic_write_json(given.out, measure(SCALES[given.size], resolve_device("auto"), given.precision))


if __name__ == "__main__":
    main()
