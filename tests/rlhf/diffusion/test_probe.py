"""The canary: a log-prob as torch.distributions has it, the same wherever the same weights are, else another."""

from pathlib import Path

import pytest
import torch
from small_parts import small_config

from rlhf.diffusion.policy import Policy, base_policy, load_policy, make_trainable, trainable_state
from rlhf.diffusion.probe import canary_log_prob
from rlhf.diffusion.rollout import noise_like
from rlhf.diffusion.steps.ddim import make_schedule, transition_mean


def trained_policy(pipeline: Path, shift: float = 0.01) -> Policy:
    config = small_config(pipeline)
    policy = load_policy(config.model)
    make_trainable(policy, "lora", rank=4, targets=config.align.lora_targets, seed=0)
    with torch.no_grad():
        for parameter in trainable_parameters(policy):
            parameter.add_(shift)
    return policy


def trainable_parameters(policy: Policy) -> list[torch.nn.Parameter]:
    return [p for p in policy.unet.parameters() if p.requires_grad]


def test_the_canary_is_a_gaussian_log_density_per_element(small_pipeline: Path) -> None:
    config, policy = small_config(small_pipeline).align, trained_policy(small_pipeline)
    edge, step = policy.unet.config.sample_size, config.num_inference_steps // 2
    latents, masked, after = (
        noise_like((1, 4, edge, edge), "canary", name) for name in ("latents", "masked image", "next latents")
    )
    schedule = make_schedule(policy.scheduler, config.num_inference_steps)
    with torch.no_grad():
        condition = torch.cat([torch.ones_like(latents[:, :1]), masked], dim=1)
        output = policy.predict(latents, schedule.timesteps[[step]], condition)
        mean, std_dev_t = transition_mean(output, latents, torch.tensor([step]), schedule, config.eta)
        expected = torch.distributions.Normal(mean, std_dev_t).log_prob(after).mean()
    assert canary_log_prob(policy, config) == pytest.approx(float(expected), rel=1e-5)


def test_equal_weights_give_equal_bits_and_others_do_not(small_pipeline: Path) -> None:
    config = small_config(small_pipeline).align
    policy, again = trained_policy(small_pipeline), trained_policy(small_pipeline)
    assert canary_log_prob(policy, config) == canary_log_prob(again, config)
    assert canary_log_prob(trained_policy(small_pipeline, 0.02), config) != canary_log_prob(policy, config)
    held = {name: tensor.clone() for name, tensor in trainable_state(policy.unet).items()}
    with base_policy(policy.unet):
        assert canary_log_prob(policy, config) != canary_log_prob(again, config), "what a checksum cannot see"
        assert all(torch.equal(tensor, held[name]) for name, tensor in trainable_state(policy.unet).items())
