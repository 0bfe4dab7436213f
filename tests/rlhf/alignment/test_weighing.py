"""Weighing: kinds of trust weight, the lower bound, scales, and the metrics of an update's rewards."""

from dataclasses import fields, replace

import pytest
import torch

from rlhf.alignment import weighing
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.weighing import climbed_reward
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.errors import UserError
from rlhf.rewards.combination import Scale, combine
from rlhf.rewards.scores import Scores
from rlhf.rewards.trust_weight import CONSTANT_TRUST, choose_trust


def scores(count: int = 24) -> Scores:
    generator = torch.Generator().manual_seed(3)
    reward, uncertainty = torch.randn(2, count, generator=generator, dtype=torch.float64).abs()
    weight = torch.exp(-uncertainty)
    return Scores(reward=reward, uncertainty=uncertainty, trust_weight=weight, width=2 * uncertainty)


def weigh(align: AlignConfig, given: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns advantages and trust weights of an update with one reward."""
    weighed = weighing.weigh([{"model": given}], RunConfig(align=align), None)
    return weighed.advantages, weighed.trust_weights


def align_config(**changes: object) -> AlignConfig:
    return AlignConfig(prompts_per_update=6, samples_per_prompt=4, micro_batch_size=8, **changes)


def test_constant_weights_are_none_to_the_last_bit_whatever_their_number() -> None:
    for count in (8, 24, 48, 80):
        none, constant = (weigh(align_config(trust=kind), scores(count)) for kind in ("none", "constant"))
        assert torch.equal(constant[1], torch.ones(count))
        assert all(torch.equal(a, b) for a, b in zip(none, constant, strict=True))
    assert torch.equal(choose_trust("constant", scores().reward, None), torch.full((24,), CONSTANT_TRUST))


def test_all_kinds_of_weight_have_mean_one_and_the_uncertain_weigh_less() -> None:
    given = scores()
    for kind in ("proper", "release", "constant", "none"):
        assert float(weigh(align_config(trust=kind), given)[1].mean()) == pytest.approx(1, abs=1e-6)
    _, weights = weigh(align_config(trust="proper"), given)
    assert weights[given.uncertainty.argmax()] == weights.min() < weights.max()


def test_the_lower_bound_is_climbed_in_place_of_the_reward() -> None:
    given, align = scores(), align_config(climbs="lower_bound", trust="none")
    lower = given.reward - given.width
    torch.testing.assert_close(climbed_reward(given, align), lower.float())
    expected = algorithm_of(align).compute_advantages(lower.float().view(-1, 4), align).flatten()
    assert torch.equal(weigh(align, given)[0], expected)
    assert not torch.equal(weigh(align_config(trust="none"), given)[0], expected)


@pytest.mark.parametrize("width", [None, torch.full((24,), torch.inf, dtype=torch.float64)])
def test_climbing_a_bound_that_nobody_calibrated_is_refused(width: torch.Tensor | None) -> None:
    with pytest.raises(UserError, match=r"align\.climbs.*no reward here has a calibrated bound"):
        climbed_reward(replace(scores(), width=width), align_config(climbs="lower_bound"))


def test_the_width_of_a_sum_is_that_of_the_triangle_inequality() -> None:
    a, b = scores(), scores()
    combined = combine({"a": a, "b": b}, {"a": 1.0, "b": -2.0}, {"a": Scale(std=0.5), "b": Scale(mean=3.0, std=4.0)})
    torch.testing.assert_close(combined.width, a.width / 0.5 + 2 / 4 * b.width)
    alone = combine({"a": a}, {"a": 1.0}, {"a": Scale()})
    assert torch.equal(alone.width, a.width)


def test_micro_batches_are_weighed_as_one_update() -> None:
    given, align = scores(), align_config()
    columns = {field.name: getattr(given, field.name) for field in fields(Scores)}
    split = [
        {"model": Scores(**{name: None if c is None else c[i : i + 8] for name, c in columns.items()})}
        for i in range(0, 24, 8)
    ]
    parts = weighing.weigh(split, RunConfig(align=align), None)
    whole = weighing.weigh([{"model": given}], RunConfig(align=align), None)
    assert torch.equal(parts.advantages, whole.advantages)
    assert torch.equal(parts.trust_weights, whole.trust_weights)
    assert parts.metrics == whole.metrics
    assert parts.metrics["reward"] == float(given.reward.float().mean())
    assert parts.metrics["uncertainty"] == float(given.uncertainty.mean())
    assert parts.scales == {"model": Scale()}


def test_scales_are_measured_once_and_then_given() -> None:
    entries = (RewardEntry(kind="seam", weight=0.5), RewardEntry(kind="model", weight=-2.0))
    config = RunConfig(rewards=entries, align=align_config())
    first = weighing.weigh([{"seam": scores(), "model": scores(24)}], config, None)
    assert first.scales.keys() == {"seam", "model"}
    assert first.scales["seam"].mean == pytest.approx(float(scores().reward.mean()))
    fixed = {"seam": Scale(std=2.0), "model": Scale(std=4.0)}
    later = weighing.weigh([{"seam": scores(), "model": scores()}], config, fixed)
    assert later.scales == fixed
    assert later.metrics["reward"] == pytest.approx(float(scores().reward.mean()) * (0.5 / 2 - 2 / 4))
    assert list(later.metrics)[-2:] == ["rewards/seam", "rewards/model"]
