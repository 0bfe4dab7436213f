"""Alarms: a policy that smooths what its reward likes smooth is told from one that learns what the judge likes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf.config.run_config import EvaluateConfig
from rlhf.data.likeness import sharpness
from rlhf.data.photographs import HELD_OUT
from rlhf.data.prompts import Prompt
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.sampler import SampledTask, SamplingTask, to_png
from rlhf.evaluation.alarms import ALARM_RANGES, estimate_ranged
from rlhf.evaluation.comparison import summarise_comparison
from rlhf.evaluation.comparison_records import JudgedContestant
from rlhf.evaluation.evaluation import EvaluationSummary, evaluate
from rlhf.evaluation.judging import Jury, judge_images
from rlhf.reports.records import read_record
from rlhf.rewards.scores import Scores
from rlhf.storage.images import composite, decode_image, image_to_tensor, list_photographs, to_8bit

CONFIG = EvaluateConfig(samples_per_prompt=3, micro_batch_size=12)


def natural_prompts() -> list[Prompt]:
    """Photographs with a box each: the judge knows natural pictures alone."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    photographs = {path.name: decode_image(path) for path in list_photographs(HELD_OUT)[:16]}
    return [
        Prompt(
            prompt_id=name,
            photograph=name,
            source="s",
            hole="box",
            split="test",
            image=image_to_tensor(photograph.resize((64, 64), box=(0, 0, 240, 240))),
            mask=mask,
        )
        for name, photograph in photographs.items()
    ]


PROMPTS = natural_prompts()


class LikesSmooth:
    """A reward that a policy can climb by blurring."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        reward = -sharpness(images, masks).double()
        return Scores(reward=reward, uncertainty=0 * reward, width=torch.ones_like(reward))


@dataclass(frozen=True)
class Painter:
    """The original with a share of noise left in it, then a share of its mean colour; same noise for all painters."""

    version: int
    noise: float
    flatness: float

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        by_id = {prompt.prompt_id: prompt for prompt in PROMPTS}
        for task in tasks:
            pictures = [self.paint(by_id[name], index) for name in task.prompt_ids for index in task.sample_indices]
            yield SampledTask(task=task, images=to_png(torch.stack(pictures)))

    def paint(self, prompt: Prompt, index: int) -> torch.Tensor:
        filled = prompt.image + self.noise * noise_like(prompt.image.shape, prompt.prompt_id, index)
        flat = filled.mean((1, 2), keepdim=True).expand_as(filled)
        mixed = (1 - self.flatness) * filled + self.flatness * flat
        return composite(mixed[None], prompt.image[None], prompt.mask[None])[0]


def evaluate_path(path: list[Painter], folder: Path) -> dict:
    """The first is the base model; the others have policy folders."""
    policies = [folder / f"policy-{painter.version:06d}" for painter in path[1:]]
    for policy, painter in zip(policies, path[1:], strict=True):
        policy.mkdir(parents=True)
        known = dict.fromkeys(("trainable", "base_model", "checksum"), "none")
        (policy / "manifest.json").write_text(json.dumps(known | {"policy_version": painter.version}))
    by_policy = dict(zip([None, *policies], path, strict=True))
    jury = Jury(reward=LikesSmooth())
    summary = evaluate(by_policy.__getitem__, policies, PROMPTS, jury, folder / "out", CONFIG, seed=0)
    assert read_record(EvaluationSummary, folder / "out" / "summary.json", "") == summary
    return asdict(summary)


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Learns to leave noise out, which is right, and then to blur."""
    path = [Painter(0, 0.3, 0.0), Painter(10, 0.1, 0.0), Painter(20, 0.1, 0.9), Painter(30, 0.1, 0.95)]
    return evaluate_path(path, tmp_path_factory.mktemp("hacked"))


def test_a_policy_that_blurs_for_its_reward_trips_the_alarm_where_the_judge_turns(hacked: dict) -> None:
    (alarm,) = [alarm for alarm in hacked["alarms"] if alarm["kind"] == "over-optimisation"]
    assert (alarm["policy"], alarm["since"], alarm["judge"]) == ("policy-000020", "policy-000010", "gold")
    assert alarm["reward"]["low"] > 0 > alarm["held_out"]["high"]
    assert "rises by +" in alarm["message"]
    assert "gold judge (simulated) changes by -" in alarm["message"]


def test_its_figures_leave_their_ranges(hacked: dict) -> None:
    outside = {
        alarm["monitor"] for alarm in hacked["alarms"] if alarm["policy"] == "policy-000030" and "monitor" in alarm
    }
    assert {"sharpness", "contrast", "diversity"} <= outside
    figures = hacked["curve"][-1]["monitors"]
    assert figures.keys() == ALARM_RANGES.keys()
    # Of what varies 0.05 is left, and of the noise a third of that.
    assert figures["diversity"]["value"] == pytest.approx(0.05 / 3, abs=0.01)
    assert figures["sharpness"]["high"] < 0.8
    assert hacked["curve"][0]["monitors"]["distance"]["value"] == 0


def judge(name: str, painter: Painter) -> JudgedContestant:
    samples = torch.stack([torch.stack([painter.paint(prompt, index) for index in range(3)]) for prompt in PROMPTS])
    judged = judge_images(to_8bit(samples), PROMPTS, Jury(reward=LikesSmooth()))
    return JudgedContestant(name=name, spec=name, follows_noise=True, judged=judged)


@pytest.mark.parametrize("name", ["aligned", "mine"])
def test_a_model_that_is_no_policy_of_a_run_trips_the_alarm_too(name: str) -> None:
    entries = [judge("base", Painter(0, 0.1, 0.0)), judge(name, Painter(0, 0.1, 0.95))]
    (alarm,) = [
        alarm
        for alarm in summarise_comparison(entries, "base", PROMPTS, CONFIG).alarms
        if alarm.kind == "over-optimisation"
    ]
    assert (alarm.policy, alarm.since) == (name, "base")


def test_a_policy_that_learns_what_the_judge_likes_raises_no_alarm(tmp_path: Path) -> None:
    faithful = evaluate_path([Painter(0, 0.1, 0.0), Painter(10, 0.095, 0.0), Painter(20, 0.092, 0.0)], tmp_path)
    assert faithful["reward_gain"]["low"] > 0
    assert faithful["gold_gain"]["low"] > 0
    assert faithful["alarms"] == []


def test_noise_alone_raises_no_alarm(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Noisy(Painter):
        def paint(self, prompt: Prompt, index: int) -> torch.Tensor:
            other = noise_like(prompt.image.shape, self.version, prompt.prompt_id, index)
            return composite((prompt.image + 0.1 * other)[None], prompt.image[None], prompt.mask[None])[0]

    still = evaluate_path([Noisy(version, 0.1, 0.0) for version in (0, 10, 20)], tmp_path)
    assert [alarm for alarm in still["alarms"] if alarm["kind"] == "over-optimisation"] == []
    assert np.isclose(still["curve"][1]["monitors"]["distance"]["value"], 1.0, atol=0.1)


def test_a_policy_that_is_worse_by_its_reward_too_has_not_hacked_it(tmp_path: Path) -> None:
    worse = evaluate_path([Painter(0, 0.1, 0.0), Painter(10, 0.2, 0.0)], tmp_path)
    assert worse["gold_gain"]["high"] < 0
    assert worse["reward_gain"]["high"] < 0
    assert [alarm for alarm in worse["alarms"] if alarm["kind"] == "over-optimisation"] == []


def test_a_model_whose_samples_are_all_alike_trips_the_alarm_although_photographs_do_not_differ() -> None:
    base = judge("base", Painter(0, 0.15, 0.0)).judged
    alike = replace(base, diversity=np.zeros(len(PROMPTS)))
    found = estimate_ranged(base, alike, [prompt.photograph for prompt in PROMPTS])["diversity"]
    assert (found.value, found.is_outside) == (0.0, True)
    assert np.isnan(found.low)
    few = ["one"] * len(PROMPTS)
    assert not estimate_ranged(base, alike, few)["diversity"].is_outside
