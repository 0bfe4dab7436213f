"""The canary: a log-prob as torch.distributions has it, the same wherever the same weights are, else another."""

from pathlib import Path

import pytest
import torch
from small_parts import small_config

from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.probe import probe_log_prob
from rlhf.diffusion.trained_weights import trainable_state, without_adapters


def trained_policy(pipeline: Path, shift: float = 0.01) -> Policy:
    config = small_config(pipeline)
    policy = load_policy(config.model)
    make_trainable(policy, "lora", rank=4, targets=config.align.lora_targets, seed=0)
    with torch.no_grad():
        for parameter in trainable_parameters(policy):
            parameter.add_(shift)
    return policy


def trainable_parameters(policy: Policy) -> list[torch.nn.Parameter]:
    return [p for p in policy.network.parameters() if p.requires_grad]


def test_the_canary_is_a_gaussian_log_density_per_element(small_pipeline: Path) -> None:
    config, policy = small_config(small_pipeline).align, trained_policy(small_pipeline)
    edge, step = policy.network.config.sample_size, config.num_inference_steps // 2
    latents, masked, after = (
        noise_like((1, 4, edge, edge), "canary", name) for name in ("latents", "masked image", "next latents")
    )
    schedule = policy.family.schedule(config.num_inference_steps, (8, 8))
    with torch.no_grad():
        condition = torch.cat([torch.ones_like(latents[:, :1]), masked], dim=1)
        output = policy.predict(latents, schedule.timesteps[[step]], condition)
        transition = schedule.transition(output, latents, torch.tensor([step]), config.eta)
        expected = torch.distributions.Normal(transition.mean, transition.std_dev_t).log_prob(after).mean()
    assert probe_log_prob(policy, config) == pytest.approx(float(expected), rel=1e-5)


def test_equal_weights_give_equal_bits_and_others_do_not(small_pipeline: Path) -> None:
    config = small_config(small_pipeline).align
    policy, again = trained_policy(small_pipeline), trained_policy(small_pipeline)
    assert probe_log_prob(policy, config) == probe_log_prob(again, config)
    assert probe_log_prob(trained_policy(small_pipeline, 0.02), config) != probe_log_prob(policy, config)
    held = {name: tensor.clone() for name, tensor in trainable_state(policy.network).items()}
    with without_adapters(policy.network):
        assert probe_log_prob(policy, config) != probe_log_prob(again, config), "what a checksum cannot see"
        assert all(torch.equal(tensor, held[name]) for name, tensor in trainable_state(policy.network).items())
