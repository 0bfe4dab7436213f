"""The study of trust: which runs, when a run over-optimises, when it is as far as another, what is said of both."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_photographs import TINY_ROUNDS, write_smooth_photographs

from benchmarks.studies.paired_statistics import estimate_paired
from benchmarks.studies.trust_arms import ARMS, arm_folder, queue
from benchmarks.studies.trust_curves import ArmCurve, Onset, find_onset, mean_by_photograph, read_arm, updates_to_reach
from benchmarks.studies.trust_figures import draw_figure, format_table, pair_with_control, tabulate
from benchmarks.studies.trust_records import Comparison, TrustSummary
from benchmarks.studies.trust_summary import summarise, summarise_runs
from rlhf.errors import UserError
from rlhf.reports.metrics_log import read_metrics
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.tables import CURVE, write_table

PHOTOGRAPHS = tuple(f"photo{i // 2}" for i in range(40))
VERSIONS = [0, 10, 20, 30]
TINY = TINY_ROUNDS | {"align": TINY_ROUNDS["align"] | {"updates": 2}, "annotators": {"marks_per_candidate": 1}}


def curve(gold: list[float], reward: list[float], *, noise: float = 0.01, seed: int = 0) -> ArmCurve:
    """Samples with these means at VERSIONS; noise that is common to all policies, and some of each one's own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=40)
    own = rng.normal(0, noise, size=(2, len(gold), 40))
    own -= own.mean(axis=2, keepdims=True)
    return ArmCurve(
        versions=np.array(VERSIONS[: len(gold)]),
        reward=np.array(reward)[:, None] + common + own[0],
        gold=np.array(gold)[:, None] + common + own[1],
        photographs=PHOTOGRAPHS,
        spread={"trust_weight_std": 0.1, "late_trust_weight_std": 0.2},
    )


def test_the_queue_holds_every_run_once_and_the_main_comparison_first() -> None:
    runs = queue(5, 3)
    assert len(runs) == len(set(runs)) == 23
    assert runs[:4] == [(0, "none"), (0, "proper"), (1, "none"), (1, "proper")]
    assert all(arm in ("none", "proper") for _, arm in runs[:10])
    assert {arm for seed, arm in runs[10:14]} == {"release", "lower", "prefpaint", "all"}
    assert [arm for _, arm in runs].count("constant") == 1


def test_over_optimisation_begins_at_the_peak_of_gold() -> None:
    run = curve([0.5, 0.6, 0.55, 0.4], [0.0, 1.0, 2.0, 3.0])
    assert find_onset(run) == Onset(peak=10, confirmed=20)


def test_a_fall_within_the_noise_is_confirmed_only_where_it_is_certain() -> None:
    run = curve([0.5, 0.6, 0.599, 0.4], [0.0, 1.0, 2.0, 3.0], noise=0.05)
    assert find_onset(run) == Onset(peak=10, confirmed=30)


@pytest.mark.parametrize(
    ("gold", "reward"),
    [
        ([0.5, 0.6, 0.7, 0.8], [0.0, 1.0, 2.0, 3.0]),
        ([0.5, 0.6, 0.55, 0.4], [0.0, 1.0, 0.9, 0.8]),
        ([0.5, 0.6, 0.6, 0.5999], [0.0, 1.0, 2.0, 3.0]),
    ],
    ids=["gold rises", "gold falls with the reward", "gold stays"],
)
def test_no_over_optimisation_where_gold_holds_or_the_reward_falls_too(gold: list[float], reward: list[float]) -> None:
    assert find_onset(curve(gold, reward, noise=0.02)) is None


def test_onset_equals_a_slow_search() -> None:
    """Slow reference: every earlier policy, photograph by photograph."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        run = curve(list(0.5 + rng.normal(0, 0.02, 4)), list(rng.normal(0, 1, 4).cumsum()), noise=0.05, seed=seed)
        expected = None
        for v in range(1, 4):
            best = max(range(v), key=lambda w: run.gold[w].mean())
            per_photograph = [
                np.mean([run.gold[v, i] - run.gold[best, i] for i in range(40) if PHOTOGRAPHS[i] == name])
                for name in sorted(set(PHOTOGRAPHS))
            ]
            is_worse = estimate_paired(per_photograph, level=0.05 / 3).high < 0
            if expected is None and is_worse and run.reward[v].mean() > run.reward[best].mean():
                expected = Onset(peak=VERSIONS[best], confirmed=VERSIONS[v])
        assert find_onset(run) == expected


def test_means_by_photograph_give_each_photograph_one_vote() -> None:
    assert mean_by_photograph(np.array([1.0, 3.0, 7.0]), ["b", "b", "a"]).tolist() == [7.0, 2.0]


def test_updates_to_a_level_are_interpolated_to_the_first_crossing() -> None:
    versions = np.array(VERSIONS)
    assert updates_to_reach(versions, np.array([0.0, 1.0, 0.5, 2.0]), 0.75) == pytest.approx(7.5)
    assert updates_to_reach(versions, np.array([0.0, 1.0, 1.0, 2.0]), 1.5) == pytest.approx(25)
    assert updates_to_reach(versions, np.array([0.0, 1.0, 1.0, 2.0]), 2.0) == pytest.approx(30)
    assert updates_to_reach(versions, np.array([0.0, 1.0, 1.0, 2.0]), 2.1) is None, "not reached is no number"
    assert updates_to_reach(versions, np.array([0.5, 1.0, 1.0, 2.0]), 0.1) == 0.0


def runs_of(factor: float, *, seeds: int = 3) -> dict[tuple[str, int], ArmCurve]:
    """`none`, and `proper` whose reward rises `factor` times as fast and whose gold is better by 0.1 at the end."""
    runs = {}
    for seed in range(seeds):
        # Rises differ from seed to seed, and the arms' ratio a little.
        height, wobble = 1 + 0.1 * seed, 1 + 0.02 * seed
        rise = np.array([0.0, 1.0, 2.0, 3.0]) * height
        runs["none", seed] = curve([0.5, 0.6, 0.5, 0.3 + 0.01 * seed], list(rise), seed=seed)
        runs["proper", seed] = curve([0.5, 0.6, 0.55, 0.4], list(rise * factor * wobble), seed=10 + seed)
    return runs


def find(summary: TrustSummary, measure: str) -> Comparison:
    return next(c for c in summary.comparisons if (c.measure, c.arm) == (measure, "proper"))


def test_twice_as_fast_is_found_and_shown() -> None:
    summary = summarise_runs(runs_of(2.0))
    time = find(summary, "time")
    assert time.times[0] == (pytest.approx(12), pytest.approx(24)), "80 % of a rise of 3 by 0.1 an update"
    assert math.exp(time.value) - 1 == pytest.approx(1.04, abs=0.01)
    assert [claim.verdict for claim in summary.claims] == ["shown", "shown", "shown"]
    assert find(summary, "final gold").value == pytest.approx(0.09, abs=1e-6)


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "shown, but smaller"), (0.9, "excluded")])
def test_a_claim_of_speed_is_judged_by_its_size_too(factor: float, verdict: str) -> None:
    assert summarise_runs(runs_of(factor)).claims[1].verdict == verdict


def test_too_few_or_too_different_seeds_show_nothing() -> None:
    runs = runs_of(2.0, seeds=2)
    runs["proper", 1] = runs["none", 1]
    assert [claim.verdict for claim in summarise_runs(runs).claims] == ["not shown"] * 3


def test_a_reward_that_the_arm_never_reaches_took_it_longer_than_it_ran() -> None:
    summary = summarise_runs(runs_of(0.5))
    time = find(summary, "time")
    assert (time.at_most, time.p_value, time.detectable, time.censored) == (True, None, None, [0, 1, 2])
    assert time.value == pytest.approx(math.log(24 / 30)), "30 updates were not enough where the other took 24"
    assert summary.claims[1].verdict == "not measured", "bounds that are all alike say nothing about other seeds"
    assert "at most -20%" in format_table(summary)
    assert "not reached, not reached, not reached" in format_table(summary)
    assert summary.arms["proper"].updates_to_level == [None, None, None]


def test_one_seed_in_which_the_arm_does_not_reach_it_leaves_a_bound_that_shows_no_claim() -> None:
    slow = {key: run for key, run in runs_of(0.5).items() if key == ("proper", 1)}
    summary = summarise_runs(runs_of(2.0) | slow)
    time = find(summary, "time")
    assert time.value == pytest.approx((math.log(2) + math.log(24 / 30) + math.log(2.08)) / 3)
    assert (time.censored, time.times[1][0], time.at_most) == ([1], None, True)
    assert summary.claims[1].verdict == "not measured"


def test_a_reward_that_the_other_never_reaches_leaves_no_mean() -> None:
    slow = {("release", seed): run for (arm, seed), run in runs_of(0.5).items() if arm == "proper"}
    found = summarise_runs(runs_of(2.0) | slow).comparisons
    time = next(c for c in found if (c.measure, c.arm, c.other) == ("time", "proper", "release"))
    assert (time.value, time.low, time.censored, time.pairs) == (None, None, [0, 1, 2], 0)


def test_one_seed_gives_differences_and_no_verdict() -> None:
    summary = summarise_runs(runs_of(2.0, seeds=1))
    assert find(summary, "final gold").value == pytest.approx(0.1, abs=1e-6)
    assert {claim.verdict for claim in summary.claims} == {"not measured"}
    assert summary.constant_is_none is None


def test_differences_are_those_of_the_same_seed() -> None:
    runs = runs_of(2.0)
    del runs["proper", 0]
    del runs["none", 2]
    paired = pair_with_control(summarise_runs(runs).arms, "proper")
    assert paired == pytest.approx(np.array([[0, 0, 0.05, 0.09]]))


def test_constant_is_checked_against_none_bit_by_bit() -> None:
    runs = runs_of(2.0, seeds=1)
    assert summarise_runs(runs | {("constant", 0): runs["none", 0]}).constant_is_none is True
    nearly = curve([0.5, 0.6, 0.5, 0.3], [0.0, 1.0, 2.0, 3.0000001])
    assert summarise_runs(runs | {("constant", 0): nearly}).constant_is_none is False


def write_arm(folder: Path, run: ArmCurve) -> None:
    """A finished arm, as the stages leave it."""
    rows = [
        {
            "prompt_id": f"p{i:02d}",
            "sample_index": 0,
            "photograph": run.photographs[i],
            "policy_version": int(version),
            "reward": run.reward[v, i],
            "gold": run.gold[v, i],
        }
        for v, version in enumerate(run.versions)
        for i in range(40)
    ]
    write_table(rows, CURVE, folder / "evaluation" / "curve" / "samples.parquet")
    line = {"update": 1, "trust_weight_std": 0.1, "effective_sample_share": 0.99}
    (folder / "align").mkdir()
    (folder / "align" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    atomic_write_json(folder / "stages.json", {"align": {}, "evaluate": {}})


def test_what_is_finished_is_reported_and_what_is_missing_named(tmp_path: Path) -> None:
    for (arm, seed), run in runs_of(2.0, seeds=2).items():
        write_arm(arm_folder(tmp_path, seed, arm), run)
    (arm_folder(tmp_path, 0, "release") / "align").mkdir(parents=True)
    summary = summarise(tmp_path, 2, 1)
    assert list(summary.arms) == ["none", "proper"]
    assert summary.missing == [f"{arm}, seed 0" for arm in ("release", "lower", "prefpaint", "all", "constant")]
    assert find(summary, "final gold").value == pytest.approx(0.095, abs=1e-6)
    draw_figure(summary, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    rows = tabulate(summary)
    assert set(rows["arm"]) == {"none", "proper", "proper over none"}
    table = format_table(summary)
    assert "missing, 5 run(s): release, seed 0;" in table
    assert "(simulated)" in table


def test_nothing_finished_is_all_missing(tmp_path: Path) -> None:
    summary = summarise(tmp_path, 5, 3)
    assert (summary.arms, summary.comparisons, len(summary.missing)) == ({}, [], 23)
    draw_figure(summary, tmp_path / "study.png")
    assert "missing, 23 run(s)" in format_table(summary)


def test_a_curve_that_lacks_samples_is_refused_by_name(tmp_path: Path) -> None:
    run = curve([0.5, 0.6], [0.0, 1.0])
    write_arm(tmp_path, run)
    rows = [{"prompt_id": "p", "sample_index": i, "photograph": "a", "reward": 0.0, "gold": 0.0} for i in range(3)]
    broken = [row | {"policy_version": 0} for row in rows] + [row | {"policy_version": 10} for row in rows[:2]]
    write_table(broken, CURVE, tmp_path / "evaluation" / "curve" / "samples.parquet")
    with pytest.raises(UserError, match=r"curve: not every policy was judged on every sample"):
        read_arm(tmp_path)


def test_arms_differ_from_none_in_one_setting() -> None:
    assert ARMS["none"] == ()
    assert all(len(changes) == 1 for arm, changes in ARMS.items() if arm != "none")


def start_study(photographs: Path, pipeline: Path, out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "benchmarks.studies.trust", "--images", str(photographs)]
    words += ["--eval-images", str(photographs), "--out", str(out), "--seeds", "1", "--other-seeds", "1"]
    config = out.parent / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY | {"model": {"path": str(pipeline)}}))
    return subprocess.Popen([*words, "--annotated", "160", "--config", str(config)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_study_goes_on_arm_by_arm_and_constant_equals_none(small_pipeline: Path, tmp_path: Path) -> None:
    pictures, out = write_smooth_photographs(tmp_path / "photographs", 40), tmp_path / "study"
    first = start_study(pictures, small_pipeline, out)
    finished, begun = (out / "seed-0" / arm for arm in ("none", "proper"))
    until = time.monotonic() + 600
    while not (begun / "align" / "metrics.jsonl").exists():
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    first.kill()
    first.wait()
    before = (finished / "stages.json").stat().st_mtime_ns
    second = start_study(pictures, small_pipeline, out)
    table, _ = second.communicate(timeout=1500)
    assert second.returncode == 0
    assert (finished / "stages.json").stat().st_mtime_ns == before, "what was done is not done again"
    summary = json.loads((out / "trust_study.json").read_text())
    assert (summary["missing"], summary["constant_is_none"]) == ([], True)
    assert set(summary["arms"]) == set(ARMS)
    assert summary["arms"]["proper"]["updates"] == [0, 1, 2]
    assert "no weight" in table
    assert {line["ratio_error"] <= 1e-6 for line in read_metrics(out / "seed-0" / "all" / "align")} == {True}
