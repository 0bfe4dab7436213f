"""Every family learns a reward that it can only reach by moving: the colour of the hole."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from family_cases import CASES, UPDATES
from family_painting import policy_of
from small_families import small_fill_pipeline
from small_parts import FAST, small_prompts

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.flux import FluxFill
from rlhf.diffusion.policy import TrueGuidance
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import Rollout, RolloutPlan

pytestmark = pytest.mark.usefixtures("process_group")
SETTINGS = {"learning_rate": 1e-2, "kl_weight": 0.0, "clip_range": 0.1, "trainable": "full"}
ALGORITHMS = ["awm", "grpo", "guard", "mixgrpo", "nft", "prefpaint"]
QUICK = {("FluxFill", "awm"), ("FluxFill", "grpo"), ("FluxFill", "guard"), ("FluxBlend", "nft")}


def gain(family: ModelFamily, algorithm: str, updates: int = UPDATES, **settings: float) -> tuple[float, float]:
    """How much redder the hole is after training, on noise that training has not seen; with its standard error."""
    config = AlignConfig(**FAST | SETTINGS | {"algorithm": algorithm} | settings)
    algo, prompts = algorithm_of(config), small_prompts(2)
    learner = Learner(policy_of(family), config, micro_batches=algo.passes_per_batch(config), seed=0)

    def measure() -> torch.Tensor:
        plan = RolloutPlan(num_inference_steps=4, eta=0.0, stochastic_steps=frozenset())
        return redness(prompts, rollout(learner.policy, prompts, plan, sample_indices=range(16), seed_key=("test",)))

    before = measure()
    for update in range(updates):
        with learner.acting() as policy:
            plan = algo.plan_rollout(config, update, 0)
            rolled = rollout(policy, prompts, plan, sample_indices=range(32), seed_key=(update,))
        advantages = algo.compute_advantages(redness(prompts, rolled).view(len(prompts), -1), config).flatten()
        batch = TrainingBatch(
            trajectories=rolled.trajectories, advantages=advantages, trust_weights=torch.ones(len(advantages))
        )
        assert learner.train([batch]).get("ratio_error", 0.0) <= 1e-5
    difference = measure() - before
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


def redness(prompts: list[Prompt], rolled: Rollout) -> torch.Tensor:
    """Mean of the red channel in the hole, [B]."""
    holes = torch.stack([p.mask for p in prompts]).repeat_interleave(len(rolled.images) // len(prompts), 0)
    return (rolled.images[:, :1] * holes).flatten(1).sum(1) / holes.flatten(1).sum(1)


class Reversed(FluxFill):
    """The same predictions with gradients of the opposite sign, as if training took the velocity for its negative."""

    def predict(self, *args: Any) -> torch.Tensor:
        output = super().predict(*args)
        return 2 * output.detach() - output


@pytest.mark.parametrize(
    ("family", "algorithm"),
    [
        pytest.param(family, algorithm, marks=[] if (family, algorithm) in QUICK else pytest.mark.slow)
        for family in CASES
        for algorithm in ALGORITHMS
    ],
)
def test_a_reward_that_only_moves_can_reach_rises(family: str, algorithm: str) -> None:
    case = CASES[family]
    rate = case.learning_rates.get(algorithm, case.learning_rate)
    updates = case.updates.get(algorithm, UPDATES)
    mean, error = gain(case.wrap(case.build()), algorithm, updates, learning_rate=rate)
    assert mean > 5 * error


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_it_falls_where_training_takes_the_velocity_for_its_negative(algorithm: str) -> None:
    mean, error = gain(Reversed(small_fill_pipeline()), algorithm)
    assert mean < -5 * error


@pytest.mark.parametrize(("family", "algorithm"), [("QwenImage", "grpo"), ("StableDiffusionXL", "nft")])
def test_training_sees_the_texts_and_the_guidance_that_sampling_saw(family: str, algorithm: str) -> None:
    config = AlignConfig(**FAST | SETTINGS | {"algorithm": algorithm})
    algo, kind = algorithm_of(config), CASES[family].wrap(CASES[family].build())
    policy = policy_of(kind, TrueGuidance(scale=3.0, negative=kind.embed("a dog")))
    learner = Learner(policy, config, micro_batches=algo.passes_per_batch(config), seed=0)
    captions = ["a cat", "grass and a long wall"]
    prompts = [replace(p, caption=caption) for p, caption in zip(small_prompts(2), captions, strict=True)]
    with learner.acting() as acting:
        rolled = rollout(acting, prompts, algo.plan_rollout(config, 0, 0), sample_indices=range(4), seed_key=(0,))
    assert rolled.trajectories.text is not None
    assert len(rolled.trajectories.text.embedding) == 2, "one embedding for each prompt"
    batch = TrainingBatch(trajectories=rolled.trajectories, advantages=torch.ones(8), trust_weights=torch.ones(8))
    figures = learner.train([batch])
    assert figures.get("ratio_error", figures.get("prediction_error", 1.0)) <= 1e-5
