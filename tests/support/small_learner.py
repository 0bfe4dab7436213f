"""A learner of a small random model, its batches, and one update in plain torch."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from small_parts import small_config, small_prompts

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state

FEW_TARGETS = ("to_q", "to_out.0", "conv1")
"""One adapter on each kind of module: a linear layer, one within a list, and a convolution."""


def align_config(pipeline: Path, **changes: object) -> AlignConfig:
    """Settings of a small run, with few adapters unless `lora_targets` are given."""
    return small_config(pipeline, **({"lora_targets": FEW_TARGETS} | changes)).align


def open_copy(pipeline: Path) -> Policy:
    """The policy as `load_policy` opens it, for one owner; the files are read once in all tests."""
    return copy.deepcopy(_opened(pipeline))


@cache
def _opened(pipeline: Path) -> Policy:
    return load_policy(small_config(pipeline).model)


def start(pipeline: Path, config: AlignConfig, begin: Path | None = None) -> Learner:
    passes = algorithm_of(config).passes_per_batch(config)
    return Learner(open_copy(pipeline), config, micro_batches=2 * passes, seed=0, start=begin)


def sampler_policy(pipeline: Path, config: AlignConfig, weights: dict[str, torch.Tensor]) -> Policy:
    """What a sampler's process holds: its own pipeline, into which it loads the weights that are published."""
    policy = _own_policy(pipeline, config.trainable, config.lora_rank, config.lora_targets)
    load_trainable_state(policy.network, weights)
    return policy


@cache
def _own_policy(pipeline: Path, trainable: str, rank: int, targets: tuple[str, ...]) -> Policy:
    policy = open_copy(pipeline)
    make_trainable(policy, trainable, rank=rank, targets=targets, seed=99)
    return policy


def batches(policy: Policy, config: AlignConfig, update: int = 0) -> list[TrainingBatch]:
    plan = algorithm_of(config).plan_rollout(config, update, 0)
    prompts = small_prompts(4)
    result = []
    for start_index in (0, 2):
        chosen = prompts[start_index : start_index + 2]
        kept = rollout(policy, chosen, plan, sample_indices=range(4), seed_key=(0, update)).trajectories
        generator = torch.Generator().manual_seed(update)
        advantages = torch.randn(8, generator=generator)
        trust = torch.rand(8, generator=generator) + 0.5
        result.append(TrainingBatch(trajectories=kept, advantages=advantages, trust_weights=trust))
    return result


def assert_an_update_equals_plain_torch(
    pipeline: Path, config: AlignConfig, losses_of: Callable[[Policy, Schedule, TrainingBatch], list[torch.Tensor]]
) -> None:
    """Slow reference: AdamW on the mean of all passes' losses, with autograd, without DeepSpeed."""
    learner = start(pipeline, config)
    weights = learner.weights()
    rolled = batches(sampler_policy(pipeline, config, weights), config)
    learner.train(rolled)

    plain = sampler_policy(pipeline, config, weights)
    trained = [p for p in plain.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    optimizer.zero_grad()
    schedule = plain.family.schedule(config.num_inference_steps, (8, 8))
    torch.stack([loss for batch in rolled for loss in losses_of(plain, schedule, batch)]).mean().backward()
    torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
    optimizer.step()
    expected, got = trainable_state(plain.network), learner.weights()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=2e-5, rtol=0)
    assert any(not torch.equal(weights[n], got[n]) for n in got)
