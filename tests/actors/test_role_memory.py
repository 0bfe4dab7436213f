"""Each role holds the networks that it computes with, and not one byte of another."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_gpu import fake_gpu, holds_gpu_memory
from small_learner import start
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.learner_loop import open_networks
from actors.reward_scorer import RewardScorer
from actors.rollout_sampler import RolloutSampler
from rlhf.alignment.sleeping import find_tensors
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.probe import probe_log_prob
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.text_encoding import fill_cache
from rlhf.diffusion.trajectories import RolloutPlan


def bytes_of(*networks: object) -> int:
    """Bytes of the tensors of some modules, those on the meta device left out."""
    modules = [network for network in networks if isinstance(network, torch.nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type != "meta")


def held(policy: Policy) -> int:
    return bytes_of(*policy.family.pipeline.components.values(), policy.merged)


def trained_bytes(policy: Policy) -> int:
    return sum(p.nbytes for p in policy.network.parameters() if p.requires_grad)


@pytest.mark.parametrize(("merged", "networks"), [(True, 2), ("auto", 2), (False, 1)])
def test_a_sampler_holds_the_vae_and_a_second_network_only_if_it_is_merged(
    small_pipeline: Path, merged: bool | str, networks: int
) -> None:
    whole = load_policy(small_config(small_pipeline).model)
    policy = RolloutSampler(small_config(small_pipeline, merged_sampling=merged)).policy
    base, vae = bytes_of(whole.network), bytes_of(whole.family.pipeline.vae)
    assert held(policy) == networks * base + vae + trained_bytes(policy)


def test_samplers_and_learners_hold_no_text_encoder_though_prompts_have_captions(
    small_pipeline: Path, tmp_path: Path
) -> None:
    """The encoder's weights are gone before they start."""
    model = shutil.copytree(small_pipeline, tmp_path / "model")
    config, prompts = (
        small_config(model, merged_sampling=False),
        [replace(p, caption="a cat") for p in small_prompts(2)],
    )
    whole = load_policy(config.model)
    texts = fill_cache(config.model, PromptTable(write_prompts(prompts, tmp_path)), tmp_path / "texts")
    (model / "text_encoder" / "model.safetensors").unlink()
    sampler = RolloutSampler(config, texts).policy
    plan = RolloutPlan(num_inference_steps=2, eta=0.0, stochastic_steps=frozenset())
    painted = rollout(sampler, prompts, plan, sample_indices=range(1), seed_key=(0,)).images
    assert torch.equal(painted, rollout(whole, prompts, plan, sample_indices=range(1), seed_key=(0,)).images)
    painting = bytes_of(whole.network, whole.family.pipeline.vae)
    assert held(sampler) == painting + trained_bytes(sampler)
    assert held(open_networks(config, None, texts)[0]) == bytes_of(whole.network)
    assert held(whole) == painting + bytes_of(whole.family.pipeline.text_encoder), "so much less"


def test_a_learner_opens_the_network_alone(small_pipeline: Path) -> None:
    whole = load_policy(small_config(small_pipeline).model)
    policy, base, _ = open_networks(small_config(small_pipeline), None)
    assert base is None
    assert held(policy) == bytes_of(whole.network)


def test_a_sampler_and_a_scorer_that_sleep_hold_nothing_on_the_gpu(small_pipeline: Path, tmp_path: Path) -> None:
    config = small_config(small_pipeline, merged_sampling=True)
    sampler, scorer = RolloutSampler(config), RewardScorer(config, save_small_reward(tmp_path / "reward"))
    before = probe_log_prob(sampler.policy, config.align)
    for tensor in find_tensors((sampler, scorer)):
        tensor.data = tensor.data.clone()  # Weights that are read from a file lie in its pages, and not as on a GPU.
    held_by = {role: [t for t in find_tensors(role) if holds_gpu_memory(t)] for role in (sampler, scorer)}
    for role, tensors in held_by.items():
        assert sum(tensor.nbytes for tensor in tensors) > 10_000
        with fake_gpu():
            role.sleep()
            assert not any(holds_gpu_memory(tensor) for tensor in tensors)
            role._sleeper.wake()
            assert all(holds_gpu_memory(tensor) for tensor in tensors)
    assert probe_log_prob(sampler.policy, config.align) == before


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("algorithm", "trainable", "copies"),
    [("grpo", "lora", 0), ("nft", "lora", 0), ("grpo", "full", 1)],
)
def test_the_kl_needs_a_second_network_only_where_the_whole_one_is_trained(
    small_pipeline: Path, algorithm: str, trainable: str, copies: int
) -> None:
    config = small_config(small_pipeline, algorithm=algorithm, trainable=trainable, lora_targets=("to_q",)).align
    assert config.kl_weight > 0
    learner = start(small_pipeline, config)
    network = bytes_of(learner.policy.network)
    assert bytes_of(learner._base) == copies * network
    old = sum(tensor.nbytes for tensor in (learner._old or {}).values())
    assert old == (trained_bytes(learner.policy) if algorithm == "nft" else 0), "nft's old policy is a second adapter"
