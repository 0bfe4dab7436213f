from pathlib import Path

import pytest
import torch
from small_learner import (
    FEW_TARGETS,
    align_config,
    assert_an_update_equals_plain_torch,
    batches,
    sampler_policy,
    start,
)
from small_parts import small_config

from rlhf.alignment.learner import Learner, RatioError
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.policy_gradient import clipped_objective, replay_transition
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.families.stable_diffusion import LORA_TARGETS
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_weights import check_start, save_policy
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.errors import UserError

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize(
    ("algorithm", "trainable", "over", "targets"),
    [
        ("grpo", "lora", "hole", LORA_TARGETS),
        ("grpo", "lora", "all", FEW_TARGETS),
        ("grpo", "full", "hole", FEW_TARGETS),
        ("prefpaint", "lora", "hole", FEW_TARGETS),
        ("prefpaint", "lora", "all", FEW_TARGETS),
        ("prefpaint", "full", "hole", FEW_TARGETS),
        ("mixgrpo", "lora", "hole", FEW_TARGETS),
    ],
)
def test_ratio_is_one_before_the_first_update(
    small_pipeline: Path, algorithm: str, trainable: str, over: str, targets: tuple[str, ...]
) -> None:
    config = align_config(
        small_pipeline, algorithm=algorithm, trainable=trainable, log_prob_over=over, lora_targets=targets
    )
    learner = start(small_pipeline, config)
    for update in range(2):
        sampler = sampler_policy(small_pipeline, config, learner.weights())
        metrics = learner.train(batches(sampler, config, update))
        assert metrics["ratio_error"] <= 1e-6
        assert metrics["approx_kl"] <= 1e-12
    assert metrics["kl_to_base"] > 0, "the first update has moved the policy"


def test_ratio_is_one_for_sdxl_and_its_update_is_loaded_again(small_xl_pipeline: Path, tmp_path: Path) -> None:
    config = align_config(small_xl_pipeline, lora_targets=LORA_TARGETS)
    learner = start(small_xl_pipeline, config)
    metrics = learner.train(batches(sampler_policy(small_xl_pipeline, config, learner.weights()), config))
    assert metrics["ratio_error"] <= 1e-6
    again = start(small_xl_pipeline, config, save_trained(learner, config, tmp_path / "policy"))
    loaded = again.weights()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in learner.weights().items())


def test_an_update_on_a_samplers_perturbed_weights_is_refused(small_pipeline: Path) -> None:
    config = align_config(small_pipeline)
    learner = start(small_pipeline, config)
    before = learner.weights()
    perturbed = {n: t + 1e-3 * torch.randn_like(t) for n, t in before.items()}
    with pytest.raises(RatioError, match="refused"):
        learner.train(batches(sampler_policy(small_pipeline, config, perturbed), config))
    after = learner.weights()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_a_second_optimizer_step_meets_the_clip(small_pipeline: Path) -> None:
    config = align_config(small_pipeline, epochs_per_update=2, clip_range=1e-5)
    learner = start(small_pipeline, config)
    metrics = learner.train(batches(sampler_policy(small_pipeline, config, learner.weights()), config))
    assert metrics["ratio_error"] <= 1e-6
    assert 0 < metrics["clipfrac"] <= 0.5, "half of the passes are the first epoch's, where no ratio is clipped"
    assert metrics["approx_kl"] > 0


def test_an_update_equals_plain_torch(small_pipeline: Path) -> None:
    config = align_config(small_pipeline, kl_weight=0.0, max_grad_norm=1e-3, lora_targets=LORA_TARGETS)

    def losses_of(plain: Policy, schedule: Schedule, batch: TrainingBatch) -> list[torch.Tensor]:
        losses = []
        t = batch.trajectories
        for k, step in enumerate(t.step_indices):
            index = torch.full((8,), step)
            output = plain.predict(t.latents[k], schedule.timesteps[index], t.condition)
            log_prob, _ = replay_transition(
                output, None, t.latents[k], t.next_latents[k], index, schedule, config.eta, t.latent_mask
            )
            old = t.old_log_prob[k]
            losses.append(clipped_objective(log_prob, old, batch.advantages, batch.trust_weights, config.clip_range)[0])
        return losses

    assert_an_update_equals_plain_torch(small_pipeline, config, losses_of)


def test_resumed_equals_uninterrupted(small_pipeline: Path, tmp_path: Path) -> None:
    config = align_config(small_pipeline)
    straight = start(small_pipeline, config)
    for update in (0, 1):
        straight.train(batches(sampler_policy(small_pipeline, config, straight.weights()), config, update))

    first = start(small_pipeline, config)
    first.train(batches(sampler_policy(small_pipeline, config, first.weights()), config, 0))
    first.save(tmp_path, 1)
    second = start(small_pipeline, config)
    assert second.load(tmp_path) == 1
    second.train(batches(sampler_policy(small_pipeline, config, second.weights()), config, 1))
    resumed = second.weights()
    for name, tensor in straight.weights().items():
        assert torch.equal(tensor, resumed[name]), name
        assert torch.equal(straight.averaged[name], second.averaged[name]), name


def test_the_saved_weights_are_the_stated_average(small_pipeline: Path) -> None:
    config = align_config(small_pipeline, average_decay=0.5)
    learner = start(small_pipeline, config)
    expected = learner.weights()
    for update in range(2):
        learner.train(batches(sampler_policy(small_pipeline, config, learner.weights()), config, update))
        expected = {n: 0.5 * expected[n] + 0.5 * t for n, t in learner.weights().items()}
    for name, tensor in learner.averaged.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-7, rtol=1e-6)


def test_without_an_average_no_copy_of_the_weights_is_held_and_the_last_ones_are_saved(
    small_pipeline: Path, tmp_path: Path
) -> None:
    config = align_config(small_pipeline, average_decay=0.0)
    learner = start(small_pipeline, config)
    learner.train(batches(sampler_policy(small_pipeline, config, learner.weights()), config))
    assert learner.averaged == {}
    last = learner.averaged_weights()
    assert all(torch.equal(tensor, last[name]) for name, tensor in learner.weights().items())
    learner.save(tmp_path, 1)
    resumed = start(small_pipeline, config)
    assert resumed.load(tmp_path) == 1
    assert all(torch.equal(tensor, last[name]) for name, tensor in resumed.averaged_weights().items())


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(small_pipeline: Path) -> None:
    config = align_config(small_pipeline)
    learner = start(small_pipeline, config)
    before = learner.weights()
    rolled = batches(sampler_policy(small_pipeline, config, before), config)
    rolled[1].advantages[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        learner.train(rolled)
    assert all(torch.equal(before[n], t) for n, t in learner.weights().items())


def test_every_zero_stage_takes_the_same_step(small_pipeline: Path) -> None:
    results = []
    for zero_stage in (0, 1, 2):
        config = align_config(small_pipeline, zero_stage=zero_stage)
        learner = start(small_pipeline, config)
        learner.train(batches(sampler_policy(small_pipeline, config, learner.weights()), config))
        results.append(learner.weights())
    for name, expected in results[0].items():
        for sharded in results[1:]:
            torch.testing.assert_close(sharded[name], expected, atol=2e-5, rtol=0)


def save_trained(learner: Learner, config: AlignConfig, folder: Path) -> Path:
    save_policy(
        learner.policy.family, learner.weights(), folder, version=1, trainable=config.trainable, base=str(folder.parent)
    )
    return folder


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_activations_computed_again_give_the_same_step(small_pipeline: Path, trainable: str) -> None:
    weights, recomputed = [], []
    for is_on in (False, True):
        config = align_config(small_pipeline, trainable=trainable, gradient_checkpointing=is_on)
        learner = start(small_pipeline, config)
        block = learner.policy.network.down_blocks[0].resnets[0]
        passes: list[object] = []
        block.register_forward_pre_hook(lambda *_, passes=passes: passes.append(None))
        metrics = learner.train(batches(sampler_policy(small_pipeline, config, learner.weights()), config))
        assert metrics["ratio_error"] <= 1e-6
        weights.append(learner.weights())
        recomputed.append(len(passes))
    assert recomputed[1] > recomputed[0]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_training_from_a_policy_begins_with_its_very_weights_and_holds_to_the_base(
    small_pipeline: Path, tmp_path: Path, trainable: str
) -> None:
    config = align_config(small_pipeline, trainable=trainable)
    first = start(small_pipeline, config)
    first.train(batches(sampler_policy(small_pipeline, config, first.weights()), config))
    policy = save_trained(first, config, tmp_path / "policy")
    second = start(small_pipeline, config, policy)
    held, averaged, trained = second.weights(), second.averaged, first.weights()
    assert held.keys() == trained.keys()
    assert all(torch.equal(held[n], trained[n]) and torch.equal(averaged[n], trained[n]) for n in held)
    # The folder, opened as users open it, samples what the learner replays.
    rolled = batches(load_policy(small_config(small_pipeline).model, policy), config)
    metrics = second.train(rolled)
    assert metrics["ratio_error"] <= 1e-6
    assert metrics["kl_to_base"] > 0, "the KL is to the base model, not to the policy of the start"


def test_a_policy_that_does_not_fit_is_no_start(small_pipeline: Path, tmp_path: Path) -> None:
    config = align_config(small_pipeline)
    policy = save_trained(start(small_pipeline, config), config, tmp_path / "policy")
    with pytest.raises(UserError, match="another rank"):
        start(small_pipeline, align_config(small_pipeline, lora_rank=2), policy)
    with pytest.raises(UserError, match="`lora` weights, but align.trainable is `full`"):
        start(small_pipeline, align_config(small_pipeline, trainable="full"), policy)
    with pytest.raises(UserError, match="is a policy of"):
        check_start(policy, "lora", "elsewhere")


def test_bf16_is_bf16_in_the_engine_too_where_deepspeed_sees_autocast(small_pipeline: Path) -> None:
    policy = load_policy(small_config(small_pipeline).model.model_copy(update={"precision": "bf16"}))
    learner = Learner(policy, align_config(small_pipeline), micro_batches=2, seed=0)
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 500]), torch.randn(2, 5, 8, 8))
    torch.set_autocast_enabled("cuda", True)  # the flag that DeepSpeed looks at, as it is on a GPU
    try:
        outputs = [policy.predict_with(net, *inputs) for net in (learner.engine, policy.network)]
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[1], load_policy(small_config(small_pipeline).model).predict(*inputs))
    assert not any(hasattr(p, "comm_dtype") for p in policy.network.parameters()), "gradients are averaged in float32"
