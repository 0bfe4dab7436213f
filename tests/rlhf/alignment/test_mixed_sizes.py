"""Updates with prompts of several sizes, in micro-batches of one size each and of unequal length."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from small_learner import align_config, sampler_policy, start
from small_parts import prompts_of_three_sizes

from actors.coordinator import share_out
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.data.buckets import batches_of_one_size
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import Recording, Trajectories

SAMPLES = 4
pytestmark = pytest.mark.usefixtures("process_group")


class GradientsKept:
    """An engine that keeps the gradients of its trained weights as they are when the optimizer steps."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self._engine(*inputs, **options)

    def step(self) -> None:
        if self._engine.is_gradient_accumulation_boundary():
            named = self._engine.module.named_parameters()
            self.gradients = {name: safe_get_full_grad(p).clone() for name, p in named if p.requires_grad}
        self._engine.step()


def roll_out(policy: Policy, config: AlignConfig) -> list[TrainingBatch]:
    """Four prompts in micro-batches of two or of one, weighed as those of one rank."""
    plan = algorithm_of(config).plan_rollout(config, 0, 0)
    prompts = {prompt.prompt_id: prompt for prompt in prompts_of_three_sizes(4)}
    generator, made = torch.Generator().manual_seed(0), []
    for names in batches_of_one_size(prompts, {name: prompt.size for name, prompt in prompts.items()}, 2):
        own = [prompts[name] for name in names]
        kept = rollout(policy, own, plan, sample_indices=range(SAMPLES), seed_key=(0,)).trajectories
        count = len(own) * SAMPLES
        advantages, trust = torch.randn(count, generator=generator), torch.rand(count, generator=generator) + 0.5
        made.append(TrainingBatch(trajectories=kept, advantages=advantages, trust_weights=trust))
    assert [len(batch.advantages) for batch in made] == [8, 4, 4]
    (weighed,) = share_out(made, 1)
    return weighed


def sample_of(t: Recording, i: int) -> Recording:
    alone = {"condition": t.condition[i : i + 1], "latent_mask": t.latent_mask[i : i + 1]}
    alone["latents"] = t.latents[:, i : i + 1]
    if isinstance(t, Trajectories):
        return replace(t, **alone, next_latents=t.next_latents[:, i : i + 1], old_log_prob=t.old_log_prob[:, i : i + 1])
    alone |= {"clean_latents": t.clean_latents[i : i + 1], "steps": t.steps[:, i : i + 1]}
    return replace(t, **alone, old_prediction=t.old_prediction[:, i : i + 1])


def loss_of_samples(plain: Policy, batch: TrainingBatch, config: AlignConfig) -> list[torch.Tensor]:
    """The loss of every sample and pass, each computed alone."""
    losses = []
    schedule = plain.family.schedule(config.num_inference_steps, cells_of(batch.trajectories.latents))
    for i in range(len(batch.advantages)):
        t = sample_of(batch.trajectories, i)
        alone = TrainingBatch(
            trajectories=t, advantages=batch.advantages[i : i + 1], trust_weights=batch.trust_weights[i : i + 1]
        )
        for k in range(len(t.latents)):
            output = plain.predict(t.latents[k], schedule.timesteps[t.steps_at(k)], t.condition)
            losses.append(algorithm_of(config).objective.compute_loss(output, None, alone, k, schedule, config).loss)
    return losses


@pytest.mark.parametrize(("algorithm", "zero_stage"), [("grpo", 0), ("grpo", 2), ("nft", 1)])
def test_gradients_are_the_mean_over_all_samples_computed_one_at_a_time(
    small_pipeline: Path, algorithm: str, zero_stage: int
) -> None:
    config = align_config(small_pipeline, algorithm=algorithm, kl_weight=0.0, zero_stage=zero_stage)
    learner = start(small_pipeline, config)
    weights = learner.weights()
    rolled = roll_out(sampler_policy(small_pipeline, config, weights), config)
    learner.engine = GradientsKept(learner.engine)
    metrics = learner.train(rolled)

    plain = sampler_policy(small_pipeline, config, weights)
    losses = torch.stack([loss for batch in rolled for loss in loss_of_samples(plain, batch, config)])
    plain.network.zero_grad()
    losses.mean().backward()
    expected = {name: p.grad for name, p in plain.network.named_parameters() if p.requires_grad}
    assert learner.engine.gradients.keys() == expected.keys()
    for name, gradient in learner.engine.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))
    assert metrics["loss"] == pytest.approx(float(losses.mean().detach()), rel=1e-4, abs=1e-7)
    assert metrics["backward_images"] == 16 * len(rolled[0].trajectories.latents)
    assert any(not torch.equal(weights[name], tensor) for name, tensor in learner.weights().items())


def test_a_run_resumed_between_updates_of_two_and_three_micro_batches_ends_alike(
    small_pipeline: Path, tmp_path: Path
) -> None:
    config = align_config(small_pipeline)

    def train(learner: Learner, count: int) -> None:
        batches = roll_out(sampler_policy(small_pipeline, config, learner.weights()), config)[:count]
        (weighed,) = share_out(batches, 1)
        assert learner.train(weighed)["ratio_error"] <= 1e-6

    straight, resumed = start(small_pipeline, config), start(small_pipeline, config)
    train(straight, 2)
    straight.save(tmp_path, 1)
    assert resumed.load(tmp_path) == 1
    for learner in (straight, resumed):
        train(learner, 3)
    ours = resumed.weights()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in straight.weights().items())
