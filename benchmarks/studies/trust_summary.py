"""Summarises the finished arms of the study of trust: arms, paired comparisons, and the paper's claims.

Rises are over the base model, with the reward model and noise of the same seed. Pairs are the runs of one seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.studies.paired_statistics import PairedEstimate, estimate_paired
from benchmarks.studies.trust_arms import ARMS, CONTROL, arm_folder, is_finished, queue
from benchmarks.studies.trust_curves import ArmCurve, find_onset, read_arm, updates_to_reach
from benchmarks.studies.trust_records import (
    ArmFigures,
    Claim,
    Comparison,
    RiseComparison,
    TimeComparison,
    TrustSummary,
)
from rlhf.reports.intervals import Estimate, estimate_figure
from rlhf.reports.significance import holm

COMPARISONS = (
    ("proper", "none"),
    ("release", "none"),
    ("proper", "release"),
    ("lower", "none"),
    ("prefpaint", "none"),
    ("all", "none"),
)
LEVEL_SHARE = 0.8
"""Share of the highest rise of `none` that, added to the base model's reward, is the common reward of a seed."""
MEASURES = ("final reward", "final gold", "best gold", "time")
"""Rises of the last policy, the highest rise of gold, and the log of the updates to the common reward. Each measure is
a family of comparisons for Holm's correction."""
Runs = Mapping[tuple[str, int], ArmCurve]
"""Finished runs by arm and seed."""


def summarise(out: Path, seeds: int, other_seeds: int) -> TrustSummary:
    """Returns the figures of the finished runs in `out`, and the names of the missing ones."""
    wanted = [(arm, seed) for seed, arm in queue(seeds, other_seeds)]
    runs = {(arm, seed): read_arm(folder) for arm, seed in wanted if is_finished(folder := arm_folder(out, seed, arm))}
    return summarise_runs(runs, [f"{arm}, seed {seed}" for arm, seed in wanted if (arm, seed) not in runs])


def summarise_runs(runs: Runs, missing: Sequence[str] = ()) -> TrustSummary:
    """Returns the figures of the runs."""
    comparisons = compare_arms(runs)
    return TrustSummary(
        arms={arm: _describe_arm(arm, runs) for arm in ARMS if seeds_of(arm, runs)},
        comparisons=comparisons,
        claims=judge_claims(comparisons),
        constant_is_none=is_same(runs, "constant", CONTROL),
        level_share=LEVEL_SHARE,
        missing=list(missing),
    )


def seeds_of(arm: str, runs: Runs) -> list[int]:
    """Returns the finished seeds of an arm."""
    return sorted(seed for name, seed in runs if name == arm)


def is_same(runs: Runs, arm: str, other: str) -> bool | None:
    """Whether two arms were judged the same to the last bit in each common seed; None without a common seed."""
    seeds = [seed for seed in seeds_of(arm, runs) if (other, seed) in runs]
    pairs = [(runs[arm, seed], runs[other, seed]) for seed in seeds]
    same = [np.array_equal(a.reward, b.reward) and np.array_equal(a.gold, b.gold) for a, b in pairs]
    return all(same) if same else None


def common_level(seed: int, runs: Runs) -> float | None:
    """Returns the rise of the reward to which all arms of a seed are timed; None without `none`."""
    control = runs.get((CONTROL, seed))
    return None if control is None else LEVEL_SHARE * float(control.rise("reward").max())


def time_to_level(arm: str, seed: int, runs: Runs) -> float | None:
    """Returns the updates of an arm to the common level of its seed; None if it is not reached."""
    level, curve = common_level(seed, runs), runs[arm, seed]
    return None if level is None else updates_to_reach(curve.versions, curve.rise("reward"), level)


def _describe_arm(arm: str, runs: Runs) -> ArmFigures:
    seeds = seeds_of(arm, runs)
    curves = [runs[arm, seed] for seed in seeds]
    reward, gold = (np.stack([curve.rise(name) for curve in curves]) for name in ("reward", "gold"))
    best = gold.argmax(axis=1)
    return ArmFigures(
        seeds=seeds,
        updates=curves[0].versions.tolist(),
        reward_rise=reward.tolist(),
        final_reward=estimate_paired(reward[:, -1]),
        gold_rise=gold.tolist(),
        final_gold=estimate_paired(gold[:, -1]),
        best_gold=estimate_paired(gold[range(len(best)), best]),
        best_gold_at=[int(curve.versions[place]) for curve, place in zip(curves, best, strict=True)],
        onsets=[find_onset(curve) for curve in curves],
        updates_to_level=[time_to_level(arm, seed, runs) for seed in seeds],
        spread={name: float(np.mean([curve.spread[name] for curve in curves])) for name in curves[0].spread},
    )


def compare_arms(runs: Runs) -> list[Comparison]:
    """Returns every comparison of COMPARISONS by every measure, with p values adjusted within each measure."""
    found: list[Comparison] = []
    for measure in MEASURES:
        family = [c for arm, other in COMPARISONS if (c := _compare(measure, arm, other, runs)) is not None]
        adjusted = iter(holm([c.p_value for c in family if c.p_value is not None]))
        found += [c if c.p_value is None else replace(c, p_holm=next(adjusted)) for c in family]
    return found


def _compare(measure: str, arm: str, other: str, runs: Runs) -> Comparison | None:
    """Compares one arm with another over the seeds that both have; None without any."""
    seeds = [seed for seed in seeds_of(arm, runs) if (other, seed) in runs]
    if not seeds:
        return None
    if measure == "time":
        return _compare_times(arm, other, seeds, runs)
    values: dict[str, Callable[[ArmCurve], float]] = {
        "final reward": lambda c: float(c.rise("reward")[-1]),
        "final gold": lambda c: float(c.rise("gold")[-1]),
        "best gold": lambda c: float(c.rise("gold").max()),
    }
    value = values[measure]
    theirs = [value(runs[other, seed]) for seed in seeds]
    differences = [value(runs[arm, seed]) - base for seed, base in zip(seeds, theirs, strict=True)]
    over_photographs = None
    if measure.startswith("final"):
        over_photographs = _over_photographs(measure.removeprefix("final "), arm, other, seeds, runs)
    return RiseComparison(
        **vars(estimate_paired(differences)),
        measure=measure,
        arm=arm,
        other=other,
        seeds=seeds,
        of_other=float(np.mean(theirs)),
        over_photographs=over_photographs,
    )


def _over_photographs(name: str, arm: str, other: str, seeds: list[int], runs: Runs) -> Estimate:
    """Returns the mean difference of the last policies with its interval over photographs."""
    pairs = [(runs[arm, seed], runs[other, seed]) for seed in seeds]
    differences = np.concatenate([getattr(a, name)[-1] - getattr(b, name)[-1] for a, b in pairs])
    return estimate_figure(differences, [p for a, _ in pairs for p in a.photographs])


def _compare_times(arm: str, other: str, seeds: list[int], runs: Runs) -> TimeComparison:
    """Compares log(T_other / T_arm); the paper's T_b / T_m - 1 is its exponential minus 1.

    If only the arm never reaches the level, all its updates stand for its time, and the figures are upper bounds
    without a test. If the other arm does not reach it, there are no figures.
    """
    times = [(time_to_level(arm, seed, runs), time_to_level(other, seed, runs)) for seed in seeds]
    censored = [seed for seed, (m, b) in zip(seeds, times, strict=True) if m is None or b is None]
    known = [(m or float(runs[arm, seed].versions[-1]), b) for seed, (m, b) in zip(seeds, times, strict=True) if b]
    if len(known) < len(seeds):
        pairs = len(seeds) - len(censored)
        found = PairedEstimate(value=None, low=None, high=None, p_value=None, detectable=None, pairs=pairs)
    else:
        found = estimate_paired([math.log(b / m) for m, b in known])
        found = replace(found, p_value=None, detectable=None) if censored else found
    return TimeComparison(
        **vars(found),
        measure="time",
        arm=arm,
        other=other,
        seeds=seeds,
        times=times,
        censored=censored,
        at_most=bool(censored),
    )


def judge_claims(comparisons: Sequence[Comparison]) -> list[Claim]:
    """Returns the paper's claims about the trust weight, each with its verdict by the interval over seeds.

    A claim is `shown` if the interval lies above 0; `shown, but smaller` if it also lies below the stated size;
    `excluded` if it holds 0 or lies below and is below the stated size; otherwise `not shown`. Upper bounds can only
    exclude. A constant weight equals no weight, so the claim about it is judged against `none`, and is excluded only if
    the interval lies below 0.
    """
    by_key = {(c.measure, c.arm, c.other): c for c in comparisons}
    final, gold, time = (by_key.get((m, "proper", CONTROL)) for m in ("final reward", "final gold", "time"))
    rise = 0.017 * final.of_other if isinstance(final, RiseComparison) else None
    stated = (
        ("trust weighting raises the reward by 1.7 %", final, rise),
        ("it reaches the same reward 106 % faster", time, math.log(2.06)),
        ("it beats a constant weight (final gold)", gold, 0.0),
    )
    return [
        Claim(claim=claim, verdict=_judge_claim(figures, least), stated=least, figures=figures)
        for claim, figures, least in stated
    ]


def _judge_claim(figures: Comparison | None, stated: float | None) -> str:
    if figures is None or figures.low is None or figures.high is None or stated is None:
        return "not measured"
    is_smaller = figures.high < stated
    if isinstance(figures, TimeComparison) and figures.at_most:
        return "excluded" if is_smaller else "not measured"
    if figures.low > 0:
        return "shown, but smaller" if is_smaller else "shown"
    return "excluded" if is_smaller else "not shown"
