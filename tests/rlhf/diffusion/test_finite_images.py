"""Images that are not finite end with an error that names model, policy or prompt: never with a black picture."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_parts import save_moved_policy, small_config, small_prompts

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.builtin.model_quality import measure_quality
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.tile_painting import paint, to_canvas
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError

PLAN = RolloutPlan(num_inference_steps=2, eta=0.0, stochastic_steps=frozenset())


@pytest.fixture
def exploding(small_pipeline: Path) -> Policy:
    """Finite weights whose products are not."""
    policy = load_policy(ModelConfig(path=str(small_pipeline)))
    policy.network.conv_out.weight.data.fill_(3e38)
    return policy


def test_images_that_are_not_finite_are_an_error_that_names_model_and_prompt(
    exploding: Policy, small_pipeline: Path
) -> None:
    with pytest.raises(UserError, match=f"{small_pipeline}: paints numbers that are not finite for prompt p0, p1;"):
        rollout(exploding, small_prompts(2), PLAN, sample_indices=[0, 1], seed_key=(0,))
    with pytest.raises(UserError, match="not finite for prompt p0"):
        measure_quality(exploding, small_prompts(1), num_inference_steps=2, seed=0)


def test_one_prompt_that_is_not_finite_is_named_alone(small_pipeline: Path) -> None:
    first, second = small_prompts(2)
    broken = replace(second, image=torch.full_like(second.image, float("nan")))
    with pytest.raises(UserError, match="not finite for prompt p1;"):
        rollout(
            load_policy(small_config(small_pipeline).model), [first, broken], PLAN, sample_indices=[0], seed_key=(0,)
        )


def test_a_photograph_with_a_hole_is_not_filled_with_black(exploding: Policy, small_pipeline: Path) -> None:
    hole = np.zeros((40, 50), bool)
    hole[10:20, 10:30] = True
    with pytest.raises(UserError, match=f"{small_pipeline}: paints numbers that are not finite for this photograph"):
        paint(exploding, to_canvas(np.zeros((40, 50, 3), np.uint8), hole), num_inference_steps=2, seed_key=(0,))


def test_a_policy_that_explodes_is_named_by_its_folder(small_pipeline: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(save_moved_policy(small_pipeline, tmp_path / "p", version=1), tmp_path / "policy"))
    policy = load_policy(ModelConfig(path=str(small_pipeline)), folder)
    policy.network.conv_out.weight.data.fill_(3e38)
    with pytest.raises(UserError, match=f"{folder}: paints numbers"):
        rollout(policy, small_prompts(1), PLAN, sample_indices=[0], seed_key=(0,))
