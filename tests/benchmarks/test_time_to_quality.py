"""Costs until an alignment is good enough, and how they compare."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.time_to_quality import (
    BEST,
    FIRST,
    GOOD,
    Arm,
    compare,
    find_reached,
    format_table,
    measure_arm,
    parse_arm,
    stages_of,
    summarise,
)
from benchmarks.time_to_quality_records import ArmSpent, Reached, Spent, TimeToQuality
from rlhf.config.config_files import find_run_file
from rlhf.storage.atomic_files import atomic_write_json

LINE = {
    "sampler_forward_images": 50,
    "learner_forward_images": 10,
    "base_forward_images": 10,
    "backward_images": 10,
    "update_s": 2.0,
}


def spent(weighted: float, *, is_reached: bool = True) -> Spent:
    costs = dict.fromkeys(("updates", "images", "forward", "backward", "weighted", "seconds"), weighted)
    return Spent(is_reached=is_reached, costs=costs, best=0.7)


def test_costs_are_those_of_the_updates_until_the_target_is_crossed() -> None:
    lines = [LINE] * 10 + [LINE | {"update_s": 4.0}] * 10
    found = measure_arm([0, 10, 20], [0.5, 0.55, 0.65], lines, 128, 0.6, "for good")
    assert found.is_reached
    expected = {
        "updates": 15.0,
        "images": 15 * 128,
        "forward": 15 * 70,
        "backward": 150,
        "weighted": 15 * 70 + 2 * 150,
        "seconds": 10 * 2 + 5 * 4,
    }
    assert found.costs == pytest.approx(expected)


def test_what_never_is_good_enough_costs_all_that_it_had() -> None:
    found = measure_arm([0, 10, 20], [0.5, 0.59, 0.55], [LINE] * 20, 128, 0.6, "for good")
    assert (found.is_reached, found.best, found.costs["updates"], found.costs["forward"]) == (False, 0.59, 20, 1400)


@pytest.mark.parametrize(
    ("win_rates", "for_good", "first"),
    [
        ([0.5, 0.7, 0.5, 0.7, 0.8], 25.0, 5.0),
        ([0.5, 0.7, 0.7, 0.7, 0.7], 5.0, 5.0),
        ([0.5, 0.7, 0.7, 0.7, 0.5], None, 5.0),
        ([0.6, 0.7, 0.7, 0.7, 0.7], 0.0, 0.0),
        ([0.5, 0.5, 0.5, 0.5, 0.5], None, None),
    ],
)
def test_a_target_that_is_lost_again_was_not_reached_for_good(
    win_rates: list[float], for_good: float | None, first: float | None
) -> None:
    found = [find_reached(np.arange(0, 50, 10), np.array(win_rates), 0.6, criterion) for criterion in (GOOD, FIRST)]
    assert found == [None if n is None else pytest.approx(n) for n in (for_good, first)]


def test_ratios_are_geometric_means_over_seeds_and_a_reference_that_fails_bounds_them() -> None:
    both = {("nft", s): spent(100 * f) for s, f in enumerate((1, 2))}
    reference = {("prefpaint", s): spent(400 * f) for s, f in enumerate((1, 8))}
    (row,) = compare(both | reference)
    assert (row.arm, row.seeds, row.bound) == ("nft", [0, 1], "")
    value, low, high = row.ratios["weighted"]
    assert value == pytest.approx((1 / 4 * 2 / 32) ** 0.5)
    assert low < value < high
    (row,) = compare(both | reference | {("prefpaint", 1): spent(3200, is_reached=False)})
    assert row.bound == "at most"
    (row,) = compare(both | reference | {("nft", 0): spent(1, is_reached=False)})
    assert (row.bound, row.ratios) == ("none", {}), "no ratio of what was not reached"
    assert compare(both) == []


def write_arm(folder: Path, rates: list[float], gold: list[float]) -> None:
    """A finished arm whose policies were saved after every 10 updates."""
    points = [
        {"policy_version": 10 * i, "win_rate": {"value": rate}, "gold": mark}
        for i, (rate, mark) in enumerate(zip(rates, gold, strict=True))
    ]
    atomic_write_json(folder / "evaluation" / "summary.json", {"curve": points})
    atomic_write_json(folder / "stages.json", {"evaluate": {}})
    lines = [LINE | {"update": i + 1} for i in range(10 * (len(rates) - 1))]
    (folder / "align").mkdir()
    (folder / "align" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_reference_that_wanders_is_also_met_at_its_best_gold_mark(tmp_path: Path) -> None:
    write_arm(tmp_path / "seed-0" / "nft", [0.5, 0.55, 0.65], [0.4, 0.42, 0.44])
    write_arm(tmp_path / "seed-0" / "prefpaint", [0.5, 0.62, 0.4], [0.40, 0.41, 0.39])
    arguments = argparse.Namespace(out=tmp_path, seeds=1, target=0.6, config=find_run_file("demo"), set=[])
    found = summarise(arguments, [parse_arm("nft"), parse_arm("prefpaint")]).reached
    updates = {
        criterion: {entry.arm: entry.costs["updates"] for entry in own.spent} for criterion, own in found.items()
    }
    assert updates[GOOD] == pytest.approx({"nft": 15.0, "prefpaint": 20.0})
    assert updates[FIRST] == pytest.approx({"nft": 15.0, "prefpaint": 10 / 0.12 * 0.1})
    assert updates[BEST] == pytest.approx({"nft": 5.0, "prefpaint": 10.0})


def test_the_table_tells_what_was_not_reached() -> None:
    runs = {("nft", 0): spent(10), ("prefpaint", 0): spent(400, is_reached=False)}
    entries = [ArmSpent(arm=arm, seed=seed, **vars(figures)) for (arm, seed), figures in runs.items()]
    reached = {"for good": Reached(spent=entries, ratios=compare(runs))}
    summary = TimeToQuality(target_win_rate=0.6, reached=reached, curves=[], missing=["grpo, seed 0"])
    table = format_table(summary)
    assert ">400.0" in table
    assert "weighted at most 0.03" in table
    assert "missing: grpo, seed 0" in table


def test_an_arm_is_an_algorithm_and_its_settings_and_its_stages_rest_on_them(tmp_path: Path) -> None:
    arm = parse_arm("nft,align.learning_rate=0.01")
    assert arm == Arm(algorithm="nft", changes=("align.learning_rate=0.01",))
    with pytest.raises(argparse.ArgumentTypeError, match="none of grpo"):
        parse_arm("ppo")
    folders = {name: tmp_path / name for name in ("prompts", "held_out", "reward", "out")}
    changes = ["align.updates=7", "evaluate.num_inference_steps=9"]
    arguments = argparse.Namespace(**folders, split="test", config=find_run_file("demo"), set=changes)
    align, judge = stages_of(arguments, arm, 2)
    assert align.settings["align"]["algorithm"] == "nft"
    assert align.settings["align"]["learning_rate"] == 0.01
    assert (align.settings["align"]["updates"], align.settings["seed"]) == (7, 2)
    assert align.run == tmp_path / "out" / "seed-2" / "nft,align.learning_rate=0.01" / "align"
    assert judge.arguments[judge.arguments.index("--run") + 1] == str(align.run)
    assert "evaluate.num_inference_steps=9" in judge.arguments
    assert "evaluate.num_inference_steps=9" not in align.arguments, "how it is judged does not outdate an alignment"
