"""Sleep and wake on a fake GPU: what is left on it, and what the tensors are afterwards."""

import gc
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu, holds_gpu_memory, mark_host
from small_learner import align_config, batches, open_copy, sampler_policy
from small_parts import small_config

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.deepspeed_engine import count_numbers
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.sleeping import Sleeper
from rlhf.alignment.split_network import load_split_policy
from rlhf.config.run_config import AlignConfig


def living() -> list[torch.Tensor]:
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def left_on_gpu(before: set[int]) -> list[torch.Size]:
    """Shapes of the tensors made since `before` that occupy the GPU, whoever holds them."""
    return [tensor.shape for tensor in living() if id(tensor) not in before and holds_gpu_memory(tensor)]


def learn(learner: Learner, rolled: list[TrainingBatch], sleeper: Sleeper | None) -> list[dict[str, float]]:
    """Two updates on one rollout; with a sleeper the learner sleeps before each."""
    metrics = []
    for update in range(2):
        if sleeper is not None:
            with fake_gpu(), sleeper.asleep():
                pass
        metrics.append(learner.train(rolled, is_on_policy=update == 0))
    return metrics


def begin(pipeline: Path, config: AlignConfig) -> Learner:
    """A learner of one micro-batch, whose averaged weights lie on the host."""
    policy = load_split_policy(small_config(pipeline).model) if config.zero_stage == 3 else open_copy(pipeline)
    learner = Learner(policy, config, micro_batches=algorithm_of(config).passes_per_batch(config), seed=0)
    for tensor in (*learner.averaged.values(), *(learner._old or {}).values()):
        mark_host(tensor)
    return learner


SLOW = pytest.mark.slow


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("stage", "trainable", "algorithm", "networks"),
    [
        pytest.param(0, "full", "grpo", 4, marks=SLOW),
        (1, "lora", "grpo", 1),
        pytest.param(1, "full", "grpo", 4, marks=SLOW),
        pytest.param(2, "lora", "nft", 1, marks=SLOW),
        pytest.param(3, "lora", "grpo", 1, marks=SLOW),
    ],
)
def test_a_learner_that_sleeps_leaves_nothing_on_the_gpu_and_learns_the_same(
    small_pipeline: Path, stage: int, trainable: str, algorithm: str, networks: int
) -> None:
    config = align_config(small_pipeline, zero_stage=stage, trainable=trainable, algorithm=algorithm)
    awake = begin(small_pipeline, config)
    rolled = batches(sampler_policy(small_pipeline, config, awake.weights()), config)[:1]
    expected = learn(awake, rolled, None)

    before = {id(tensor) for tensor in living()}
    learner = begin(small_pipeline, config)
    sleeper = Sleeper(learner)
    assert learn(learner, rolled, sleeper) == expected
    weights = learner.weights()
    with fake_gpu():
        for tensor in weights.values():
            mark_host(tensor)
        left = sleeper.sleep()
        assert left_on_gpu(before) == []
        assert sleeper.sleep() == 0, "it sleeps already"
        sleeper.wake()
    network = sum(count_numbers(p) * p.element_size() for p in learner.policy.network.parameters())
    assert left >= networks * network, "full: weights, the frozen copy, and two moments of Adam"
    for slept, theirs in ((weights, awake.weights()), (learner.weights(), weights), (learner.averaged, awake.averaged)):
        assert all(torch.equal(slept[name], tensor) for name, tensor in theirs.items())
