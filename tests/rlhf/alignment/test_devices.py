from dataclasses import fields
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu, is_host, mark_host, on_host, start_on_fake_gpu
from small_learner import align_config, batches, sampler_policy
from small_parts import small_config, small_prompts

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.rollout import rollout


@pytest.mark.parametrize("algorithm", ["awm", "grpo", "guard", "mixgrpo", "nft", "prefpaint"])
def test_a_rollout_starts_and_ends_in_host_memory(small_pipeline: Path, algorithm: str) -> None:
    config = small_config(small_pipeline, algorithm=algorithm)
    policy, prompts = load_policy(config.model), small_prompts(2)
    for prompt in prompts:
        mark_host(prompt.image)
        mark_host(prompt.mask)
    with fake_gpu():
        plan = algorithm_of(config.align).plan_rollout(config.align, 0, 0)
        rolled = rollout(policy, prompts, plan, sample_indices=range(2), seed_key=(0, 0))
    records = [getattr(record, f.name) for record in (rolled, rolled.trajectories) for f in fields(record)]
    assert all(is_host(value) for value in records if isinstance(value, torch.Tensor) and value.is_floating_point())


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("algorithm", "trainable"), [("grpo", "lora"), ("prefpaint", "full"), ("nft", "lora")])
def test_an_update_mixes_no_tensor_of_the_host_with_the_gpus(
    small_pipeline: Path, algorithm: str, trainable: str
) -> None:
    config = align_config(small_pipeline, algorithm=algorithm, trainable=trainable)
    learner = start_on_fake_gpu(small_pipeline, config)
    rolled = [on_host(b) for b in batches(sampler_policy(small_pipeline, config, learner.weights()), config)]
    with fake_gpu():
        metrics = learner.train(rolled)
    assert metrics["backward_images"] > 0
