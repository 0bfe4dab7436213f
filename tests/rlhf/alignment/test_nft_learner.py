"""Training by the forward process: what samplers act with, what is refused, what is counted, what is resumed."""

from pathlib import Path

import pytest
import torch
from small_learner import align_config, assert_an_update_equals_plain_torch, batches, sampler_policy, start

from rlhf.alignment.learner import RatioError
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.probe import probe_log_prob
from rlhf.diffusion.steps.step_rule import Schedule

pytestmark = pytest.mark.usefixtures("process_group")


def nft_config(pipeline: Path, **changes: object) -> AlignConfig:
    return align_config(pipeline, algorithm="nft", **changes)


@pytest.mark.parametrize(("trainable", "over"), [("lora", "hole"), ("full", "all")])
def test_predictions_are_the_samplers_before_every_update(small_pipeline: Path, trainable: str, over: str) -> None:
    config = nft_config(small_pipeline, trainable=trainable, log_prob_over=over, old_decay_rate=0.0)
    learner = start(small_pipeline, config)
    for update in range(2):
        sampler = sampler_policy(small_pipeline, config, learner.acting_weights())
        metrics = learner.train(batches(sampler, config, update))
        assert metrics["prediction_error"] <= 1e-6
        assert metrics["kl_to_old"] <= 1e-9
        assert "ratio_error" not in metrics
    assert metrics["kl_to_base"] > 0, "the first update has moved the policy"


def test_an_update_on_perturbed_weights_is_refused(small_pipeline: Path) -> None:
    config = nft_config(small_pipeline)
    learner = start(small_pipeline, config)
    before = learner.weights()
    perturbed = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in before.items()}
    with pytest.raises(RatioError, match="prediction_error .* refused"):
        learner.train(batches(sampler_policy(small_pipeline, config, perturbed), config))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.weights().items())


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_an_update_on_stale_weights_is_refused_where_the_run_is_synchronous(small_pipeline: Path, rate: float) -> None:
    config = nft_config(small_pipeline, old_decay_rate=rate)
    learner = start(small_pipeline, config)
    stale = sampler_policy(small_pipeline, config, learner.acting_weights())
    for update, is_on_policy in enumerate((True, False)):
        learner.train(batches(stale, config, update), is_on_policy=is_on_policy)
    before = learner.weights()
    with pytest.raises(RatioError, match="refused"):
        learner.train(batches(stale, config, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.weights().items())


def test_an_update_equals_plain_torch(small_pipeline: Path) -> None:
    """The loss as the paper has it."""
    config = nft_config(small_pipeline, kl_weight=0.0, max_grad_norm=1e-3, nft_beta=0.5)

    def losses_of(plain: Policy, schedule: Schedule, batch: TrainingBatch) -> list[torch.Tensor]:
        losses = []
        t = batch.trajectories
        r, hole = 0.5 + batch.advantages / config.advantage_clip / 2, t.latent_mask.expand_as(t.clean_latents)
        for k, steps in enumerate(t.steps):
            output = plain.predict(t.latents[k], schedule.timesteps[steps], t.condition)
            for share, sign in ((r, 1), (1 - r, -1)):
                mixed = (1 - sign * 0.5) * t.old_prediction[k] + sign * 0.5 * output
                error = (schedule.predicted_clean(mixed, t.latents[k], steps) - t.clean_latents) * hole
                count = hole.flatten(1).sum(1)
                size = error.abs().flatten(1).sum(1).detach() / count
                squared = error.square().flatten(1).sum(1) / count / size
                losses.append(2 * config.advantage_clip * (batch.trust_weights * share * squared).mean() / 0.5)
        return losses

    assert_an_update_equals_plain_torch(small_pipeline, config, losses_of)


def test_the_old_policy_is_the_stated_average_and_samplers_and_canary_have_it(small_pipeline: Path) -> None:
    config = nft_config(small_pipeline, old_decay_rate=0.2, old_decay_max=0.3)
    learner = start(small_pipeline, config)
    expected = learner.weights()
    for update, decay in enumerate((0.2, 0.3)):
        sampler = sampler_policy(small_pipeline, config, learner.acting_weights())
        with learner.acting() as policy:
            assert probe_log_prob(policy, config) == probe_log_prob(sampler, config)
        metrics = learner.train(batches(sampler, config, update))
        assert metrics["prediction_error"] <= 1e-6
        trained = learner.weights()
        expected = {name: decay * expected[name] + (1 - decay) * trained[name] for name in trained}
    for name, tensor in learner.acting_weights().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-7, rtol=1e-6)
    assert metrics["kl_to_old"] > 0, "it lags behind"
    assert not all(torch.equal(tensor, trained[name]) for name, tensor in learner.acting_weights().items())
    assert all(torch.equal(tensor, trained[name]) for name, tensor in learner.weights().items()), "put back"


def test_resumed_equals_uninterrupted(small_pipeline: Path, tmp_path: Path) -> None:
    config = nft_config(small_pipeline, old_decay_rate=0.3)

    def update(learner, number: int) -> dict[str, float]:  # noqa: ANN001
        return learner.train(batches(sampler_policy(small_pipeline, config, learner.acting_weights()), config, number))

    straight = start(small_pipeline, config)
    wanted = [update(straight, number) for number in (0, 1)]
    first = start(small_pipeline, config)
    update(first, 0)
    first.save(tmp_path, 1)
    second = start(small_pipeline, config)
    assert second.load(tmp_path) == 1
    assert update(second, 1) == wanted[1]
    for weights in ("weights", "acting_weights"):
        found, expected = getattr(second, weights)(), getattr(straight, weights)()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [("grpo", {}), ("prefpaint", {"kl_weight": 0.0}), ("nft", {"epochs_per_update": 2}), ("nft", {"kl_weight": 0.0})],
)
def test_images_through_the_learners_unet_are_those_of_the_closed_form(
    small_pipeline: Path, algorithm: str, changes: dict
) -> None:
    config = align_config(small_pipeline, algorithm=algorithm, window_size=1, trained_steps=2, **changes)
    learner = start(small_pipeline, config)
    passed = 16 * (1 if algorithm == "grpo" else 2) * config.epochs_per_update
    asked = 0

    def count(module: object, inputs: tuple, output: object) -> None:
        nonlocal asked
        asked += len(inputs[0])

    learner.policy.network.register_forward_hook(count)
    for update in range(2):
        rolled = batches(sampler_policy(small_pipeline, config, learner.acting_weights()), config, update)
        asked = 0
        metrics = learner.train(rolled)
        # One more micro-batch, to see that the old policy, which lags, is the one that sampled.
        lag = 8 if algorithm == "nft" and update else 0
        assert metrics["backward_images"] == passed
        assert metrics["learner_forward_images"] == passed + lag
        assert metrics["base_forward_images"] == (passed if config.kl_weight else 0)
        assert asked == metrics["learner_forward_images"] + metrics["base_forward_images"]
