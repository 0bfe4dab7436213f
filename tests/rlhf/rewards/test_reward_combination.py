"""The weighted sum: scales, bounds, the default that changes nothing, and the alarm."""

import pytest
import torch

from actors.telemetry.run_progress import ood_warnings
from rlhf.alignment.weighing import reward_metrics
from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.combination import Scale, combine, join_scores, measure_scales, outlying_share
from rlhf.rewards.scores import Scores

SEAM, MODEL = RewardEntry(kind="seam", weight=0.5), RewardEntry(kind="model", weight=-2.0)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bounded(seed: int, count: int = 8) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    reward, uncertainty, trust = torch.rand(3, count, generator=generator, dtype=torch.float64)
    return Scores(reward=reward, uncertainty=uncertainty, trust_weight=trust + 0.5, is_outlying=uncertainty > 0.5)


def test_a_reward_alone_is_itself_bit_for_bit() -> None:
    one = bounded(0, 1000)
    combined = combine({"model": one}, {"model": 1.0}, {"model": Scale()})
    assert torch.equal(combined.reward, one.reward)
    assert torch.equal(combined.uncertainty, one.uncertainty)
    assert torch.equal(combined.trust_weight, one.trust_weight)


def test_the_sum_weighs_normalised_rewards_and_adds_absolute_uncertainties() -> None:
    a, b, c = bounded(0), bounded(1), Scores(reward=torch.arange(8).double())
    weights = {"a": 1.0, "b": -2.0, "c": 0.5}
    scales = {"a": Scale(mean=0.5, std=0.2), "b": Scale(mean=1.0, std=4.0), "c": Scale(mean=3.0, std=2.0)}
    combined = combine({"a": a, "b": b, "c": c}, weights, scales)
    assert torch.allclose(combined.reward, (a.reward - 0.5) / 0.2 - (b.reward - 1) / 2 + (c.reward - 3) / 4)
    assert torch.allclose(combined.uncertainty, a.uncertainty / 0.2 + b.uncertainty / 2)
    assert torch.allclose(combined.trust_weight, (a.trust_weight * b.trust_weight**2) ** (1 / 3))


def test_rewards_without_bound_or_weight_leave_trust_to_the_others() -> None:
    a, c = bounded(0), Scores(reward=torch.arange(8).double())
    scales = {"a": Scale(), "c": Scale()}
    combined = combine({"c": c, "a": a}, {"a": 3.0, "c": 1.0}, scales)
    assert torch.equal(combined.trust_weight, a.trust_weight)
    assert combine({"a": a, "c": c}, {"a": 0.0, "c": 1.0}, scales).trust_weight is None
    assert combine({"c": c}, {"c": 1.0}, scales).uncertainty is None


def test_scales_are_those_that_advantages_compare() -> None:
    # Two prompts that are far apart, whose samples differ by 1 and by 0.
    scores = {"seam": Scores(reward=column(0, 1, 10, 10))}
    within = measure_scales([SEAM], scores, 2, within_prompts=True)["seam"]
    whole = measure_scales([SEAM], scores, 2, within_prompts=False)["seam"]
    assert within.mean == whole.mean == 5.25
    assert within.std == pytest.approx(0.5)
    assert whole.std == pytest.approx(float(column(0, 1, 10, 10).std()))


def test_what_an_entry_sets_is_not_measured() -> None:
    scores = {"seam": Scores(reward=column(1, 1, 1, 1))}
    entry = SEAM.model_copy(update={"std": 2.0})
    assert measure_scales([entry], scores, 2, within_prompts=True) == {"seam": Scale(mean=1.0, std=2.0)}
    entry = entry.model_copy(update={"mean": 3.0})
    assert measure_scales([entry], scores, 2, within_prompts=True) == {"seam": Scale(mean=3.0, std=2.0)}


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_reward_that_does_not_vary_has_no_scale(value: float) -> None:
    with pytest.raises(UserError, match="reward seam is the same for all samples.*set `std`"):
        measure_scales(
            [SEAM], {"seam": Scores(reward=column(value, value, value + 1, value + 1))}, 2, within_prompts=True
        )


def test_verdicts_of_tasks_are_joined_in_their_order() -> None:
    plain = Scores(reward=column(1))
    joined = join_scores([{"a": bounded(0), "c": plain}, {"a": bounded(1), "c": plain}])
    assert torch.equal(joined["a"].reward, torch.cat([bounded(0).reward, bounded(1).reward]))
    assert joined["c"].reward.tolist() == [1, 1]
    assert joined["c"].uncertainty is None


def test_share_out_of_distribution_counts_the_rewards_that_know_it() -> None:
    outlying = Scores(reward=column(0, 0), is_outlying=torch.tensor([True, False]))
    inlying = Scores(reward=column(0, 0), is_outlying=torch.tensor([False, False]))
    plain = Scores(reward=column(0, 0))
    assert outlying_share({"a": outlying, "b": plain}) == 0.5
    assert outlying_share({"a": outlying, "b": inlying}) == 0.25
    assert outlying_share({"b": plain}) is None


def test_metrics_name_several_rewards_and_leave_out_what_is_unknown() -> None:
    a, c = bounded(0), Scores(reward=torch.arange(8).double())
    both = {"a": a, "c": c}
    combined = combine(both, {"a": 1.0, "c": 1.0}, {"a": Scale(), "c": Scale()})
    assert reward_metrics(both, combined).keys() == {"uncertainty", "ood_share", "rewards/a", "rewards/c"}
    assert reward_metrics(both, combined)["rewards/c"] == 3.5
    assert reward_metrics({"a": a}, a).keys() == {"uncertainty", "ood_share"}
    assert reward_metrics({"c": c}, c) == {}


def test_the_alarm_is_told_once_for_each_time_it_is_crossed() -> None:
    shares = [0.1, 0.6, 0.7, 0.5, 0.9]
    lines = [{"update": i + 1, "uncertainty": 1.0, "ood_share": share} for i, share in enumerate(shares)]
    first, second = ood_warnings(lines, 0, 0.5)
    assert "update 2: 60%" in first
    assert "update 5: 90%" in second
    assert len(ood_warnings(lines, 2, 0.5)) == 1, "lines that were told before are not told again"
    assert ood_warnings(lines, 0, 1.0) == []


def test_a_folder_from_before_the_alarm_is_told_once() -> None:
    lines = [{"update": 1, "uncertainty": 1.0}, {"update": 2, "uncertainty": 1.0}]
    (note,) = ood_warnings(lines, 0, 0.5)
    assert "run `rlhf reward` again" in note
    assert ood_warnings(lines, 1, 0.5) == []
    assert ood_warnings([{"update": 1}], 0, 0.5) == [], "without any bound there is nothing to tell"
