"""A sampler's second UNet, with the adapters merged: where it is used, and that ratios do not see it."""

from pathlib import Path

import pytest
import torch
from small_learner import align_config, batches, start
from small_parts import small_config, small_prompts

from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import Policy, load_policy, make_trainable, update_merged
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state
from rlhf.diffusion.trajectories import RolloutPlan

pytestmark = pytest.mark.usefixtures("process_group")


def merged_policy(pipeline: Path, config: AlignConfig) -> Policy:
    policy = load_policy(small_config(pipeline).model)
    make_trainable(policy, "lora", rank=config.lora_rank, targets=config.lora_targets, seed=99, keeps_merged=True)
    return policy


def take(policy: Policy, weights: dict[str, torch.Tensor]) -> Policy:
    load_trainable_state(policy.network, weights)
    update_merged(policy)
    return policy


def moved(weights: dict[str, torch.Tensor], size: float = 0.05) -> dict[str, torch.Tensor]:
    return {name: tensor + size * torch.randn_like(tensor) for name, tensor in weights.items()}


def outputs_of(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, condition = (torch.randn(2, channels, 8, 8, generator=generator) for channels in (4, 5))
    inputs = (latents, torch.tensor([500, 30]), condition)
    with torch.no_grad():
        return policy.predict(*inputs), policy.predict_untrained(*inputs)


def test_merged_weights_predict_what_the_adapters_predict_and_do_not_drift(small_pipeline: Path) -> None:
    policy = merged_policy(small_pipeline, align_config(small_pipeline))
    fresh = trainable_state(policy.network)
    for size in (0.05, 0.2, 0.05):
        exact, merged = outputs_of(take(policy, moved(fresh, size)))
        assert (merged - exact).abs().max() <= 1e-4 * exact.abs().max()
    merged = take(policy, fresh).merged.state_dict()
    for name, weight in load_policy(small_config(small_pipeline).model).network.state_dict().items():
        assert torch.equal(merged[name], weight), "fresh adapters add nothing"


def test_only_trained_steps_run_with_adapter_layers(small_pipeline: Path) -> None:
    policy = merged_policy(small_pipeline, align_config(small_pipeline))
    counts = {"adapters": 0, "merged": 0}
    for name, unet in (("adapters", policy.network), ("merged", policy.merged)):
        unet.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    plan = RolloutPlan(num_inference_steps=5, eta=1.0, stochastic_steps=frozenset((1, 2)), trained_steps=(2,))
    rollout(policy, small_prompts(1), plan, sample_indices=range(2), seed_key=(0,))
    assert counts == {"adapters": 1, "merged": 4}


@pytest.mark.parametrize(("algorithm", "error"), [("grpo", "ratio_error"), ("nft", "prediction_error")])
def test_ratios_begin_at_one_though_other_steps_are_merged(small_pipeline: Path, algorithm: str, error: str) -> None:
    config = align_config(small_pipeline, algorithm=algorithm)
    learner, sampler = start(small_pipeline, config), merged_policy(small_pipeline, config)
    for update in range(2):
        metrics = learner.train(batches(take(sampler, learner.acting_weights()), config, update))
        assert metrics[error] <= 1e-6
    assert metrics["kl_to_base"] > 0, "the first update has moved the policy"
