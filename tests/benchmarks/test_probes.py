"""What the probes learn from, and the figures of rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.probes.fills import degrade, draw_places
from benchmarks.probes.gradient_signal import gradients_of, signal_share
from benchmarks.probes.reward_figures import order, within
from rlhf.alignment.algorithms import grpo
from rlhf.config.config_files import load_config
from rlhf.config.run_config import ModelConfig
from rlhf.data.holes import FAMILIES
from rlhf.data.photographs import HELD_OUT
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.rewards.scores import Scores
from rlhf.storage.images import decode_image, list_photographs
from tests.support.small_parts import small_prompts


@dataclass(frozen=True)
class Brightness:
    """A reward that is the mean of the pixels, scaled."""

    scale: float = 1.0

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        return Scores(reward=self.scale * images.mean((1, 2, 3)).double())


def test_fills_have_marks_and_the_original_the_highest() -> None:
    photographs = [decode_image(path) for path in list_photographs(HELD_OUT)[:2]]
    places = draw_places(photographs, 10, seed=0)
    assert {place.family for place in places} == set(FAMILIES)
    found = list(degrade(places[0], places[1], np.random.default_rng(0)))
    marks = np.array([own for _, _, own in found])
    assert found[0][0] == "original"
    assert ((marks >= 0) & (marks <= 1)).all()
    assert (marks[0] >= marks).all()
    assert all(fill.shape == places[0].image.shape and fill.isfinite().all() for _, fill, _ in found)


def test_differences_within_a_prompt_leave_its_level_out() -> None:
    assert within(np.array([1.0, 3.0, 10.0]), ["a", "a", "b"]).tolist() == [-1, 1, 0]


def test_pairs_are_of_one_prompt_and_ties_count_half() -> None:
    alike, rows = order(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 3.0, 2.0, 0.0]), ["a", "a", "a", "b"])
    assert sorted(alike.tolist()) == [0.5, 1.0, 1.0]
    assert max(rows) == 2
    alike, _ = order(np.array([1.0, 2.0]), np.array([5.0, 5.0]), ["a", "a"])
    assert alike.tolist() == pytest.approx([]), "equal scores order nothing"


def test_the_share_of_signal_is_that_of_a_mean_in_independent_noise() -> None:
    mean, noise = torch.ones(5000), torch.randn(400, 5000, generator=torch.Generator().manual_seed(0))
    assert signal_share([mean, mean, mean]) == pytest.approx(1)
    assert signal_share([mean, -mean]) == pytest.approx(-1)
    assert signal_share(list(mean + 3 * noise)) == pytest.approx(1 / (1 + 9), abs=0.003)
    assert signal_share(list(noise)) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize(
    ("algorithm", "names"),
    [("grpo", {"step 2", "step 3"}), ("awm", {"noise level drawn 1.", "noise level drawn 2."})],
)
def test_gradients_are_those_of_the_updates_own_plan(small_pipeline: Path, algorithm: str, names: set[str]) -> None:
    policy, (prompt,) = load_policy(ModelConfig(path=str(small_pipeline))), small_prompts(1)
    make_trainable(policy, "lora", rank=2, targets=None, seed=0)
    settings = f"align.algorithm={algorithm}", "align.num_inference_steps=5", "align.window_range=3"
    config = load_config(None, (*settings, "align.trained_steps=2", "align.samples_per_prompt=4")).align
    update = next(n for n in range(9) if grpo.plan_rollout(config, n, 0).trained_steps == (1, 2))
    found = gradients_of(policy, prompt, Brightness(), config, update)
    assert found.keys() == names
    assert all(float(gradient.norm()) > 0 for gradient in found.values())
    none = gradients_of(policy, prompt, Brightness(scale=0.0), config, update)
    assert all(float(gradient.norm()) == 0 for gradient in none.values()), "equal rewards teach nothing"
