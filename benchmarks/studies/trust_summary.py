"""What the finished arms of the trust study show: arms, paired comparisons, and the paper's claims.

Rises are those over the base model, of the same seed's reward model and noise. Pairs are the runs of one seed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.paired_statistics import estimate_paired
from benchmarks.studies.trust_arms import ARMS, CONTROL, arm_folder, is_finished, queue
from benchmarks.studies.trust_curves import ArmCurve, find_onset, read_arm, updates_to_reach
from rlhf.reports.intervals import cluster_bootstrap
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
"""The common reward of a seed: the base model's plus so much of the highest rise of `none`."""
MEASURES = ("final reward", "final gold", "best gold", "time")
"""Rises of the last policy; the highest rise of gold; log of the updates to the common reward. Each is a family of
comparisons for Holm's correction."""
Runs = Mapping[tuple[str, int], ArmCurve]
"""By arm and seed."""


def summarise(out: Path, seeds: int, other_seeds: int) -> dict[str, Any]:
    """All figures of what is finished in `out`, and which runs are missing."""
    wanted = [(arm, seed) for seed, arm in queue(seeds, other_seeds)]
    runs = {(arm, seed): read_arm(folder) for arm, seed in wanted if is_finished(folder := arm_folder(out, seed, arm))}
    return summarise_runs(runs) | {
        "missing": [f"{arm}, seed {seed}" for arm, seed in wanted if (arm, seed) not in runs],
        "judge": "gold judge: the noiseless utility of the simulated annotators",
    }


def summarise_runs(runs: Runs) -> dict[str, Any]:
    """`arms`, `comparisons`, `claims`, and whether `constant` was `none` to the last bit (None: not run yet)."""
    arms = {arm: _describe_arm(arm, runs) for arm in ARMS if seeds_of(arm, runs)}
    comparisons = compare_arms(runs)
    return {
        "arms": arms,
        "comparisons": comparisons,
        "claims": judge_claims(comparisons),
        "constant_is_none": is_same(runs, "constant", CONTROL),
        "level_share": LEVEL_SHARE,
    }


def seeds_of(arm: str, runs: Runs) -> list[int]:
    """Seeds of which an arm is finished."""
    return sorted(seed for name, seed in runs if name == arm)


def is_same(runs: Runs, arm: str, other: str) -> bool | None:
    """Whether two arms were judged the same to the last bit in each seed that both have; None where there is none."""
    seeds = [seed for seed in seeds_of(arm, runs) if (other, seed) in runs]
    pairs = [(runs[arm, seed], runs[other, seed]) for seed in seeds]
    same = [np.array_equal(a.reward, b.reward) and np.array_equal(a.gold, b.gold) for a, b in pairs]
    return all(same) if same else None


def common_level(seed: int, runs: Runs) -> float | None:
    """The rise of the reward that all arms of a seed are timed to; None without `none`."""
    control = runs.get((CONTROL, seed))
    return None if control is None else LEVEL_SHARE * float(control.rise("reward").max())


def time_to_level(arm: str, seed: int, runs: Runs) -> float | None:
    """Updates of an arm to the common level of its seed; None where it is not reached."""
    level, curve = common_level(seed, runs), runs[arm, seed]
    return None if level is None else updates_to_reach(curve.versions, curve.rise("reward"), level)


def _describe_arm(arm: str, runs: Runs) -> dict[str, Any]:
    seeds = seeds_of(arm, runs)
    curves = [runs[arm, seed] for seed in seeds]
    figures: dict[str, Any] = {"seeds": seeds, "updates": curves[0].versions.tolist()}
    for name in ("reward", "gold"):
        rises = np.stack([curve.rise(name) for curve in curves])
        figures[f"{name}_rise"] = rises.tolist()
        figures[f"final_{name}"] = asdict(estimate_paired(rises[:, -1]))
    best = [int(curve.rise("gold").argmax()) for curve in curves]
    figures["best_gold"] = asdict(estimate_paired([c.rise("gold")[b] for c, b in zip(curves, best, strict=True)]))
    figures["best_gold_at"] = [int(c.versions[b]) for c, b in zip(curves, best, strict=True)]
    onsets = [find_onset(curve) for curve in curves]
    figures["onsets"] = [None if onset is None else asdict(onset) for onset in onsets]
    figures["updates_to_level"] = [time_to_level(arm, seed, runs) for seed in seeds]
    figures["spread"] = {n: float(np.mean([c.spread[n] for c in curves])) for n in curves[0].spread}
    return figures


def compare_arms(runs: Runs) -> list[dict[str, Any]]:
    """Every comparison of COMPARISONS by every measure, with p values adjusted within each measure."""
    found = []
    for measure in MEASURES:
        made = [_compare(measure, arm, other, runs) for arm, other in COMPARISONS]
        family = [entry for entry in made if entry is not None]
        tested = [entry for entry in family if entry["p_value"] is not None]
        for entry, p in zip(tested, holm([entry["p_value"] for entry in tested]), strict=True):
            entry["p_holm"] = p
        found += family
    return found


def _compare(measure: str, arm: str, other: str, runs: Runs) -> dict[str, Any] | None:
    """One arm less another over the seeds that both have; None without any."""
    seeds = [seed for seed in seeds_of(arm, runs) if (other, seed) in runs]
    if not seeds:
        return None
    about: dict[str, Any] = {"measure": measure, "arm": arm, "other": other, "seeds": seeds, "p_holm": None}
    if measure == "time":
        return about | _compare_times(arm, other, seeds, runs)
    values: dict[str, Callable[[ArmCurve], float]] = {
        "final reward": lambda c: float(c.rise("reward")[-1]),
        "final gold": lambda c: float(c.rise("gold")[-1]),
        "best gold": lambda c: float(c.rise("gold").max()),
    }
    value = values[measure]
    theirs = [value(runs[other, seed]) for seed in seeds]
    differences = [value(runs[arm, seed]) - base for seed, base in zip(seeds, theirs, strict=True)]
    about |= {"of_other": float(np.mean(theirs)), "over_photographs": None}
    if measure.startswith("final"):
        about["over_photographs"] = _over_photographs(measure.removeprefix("final "), arm, other, seeds, runs)
    return about | asdict(estimate_paired(differences))


def _over_photographs(name: str, arm: str, other: str, seeds: list[int], runs: Runs) -> dict[str, Any]:
    """The last policies' mean difference with its interval over photographs: what other ones would show."""
    pairs = [(runs[arm, seed], runs[other, seed]) for seed in seeds]
    differences = np.concatenate([getattr(a, name)[-1] - getattr(b, name)[-1] for a, b in pairs])
    return asdict(cluster_bootstrap(differences, [p for a, _ in pairs for p in a.photographs]))


def _compare_times(arm: str, other: str, seeds: list[int], runs: Runs) -> dict[str, Any]:
    """log(T_other / T_arm); the paper's T_b / T_m - 1 is exp of it, less 1. `censored` lists seeds that lack a time.

    Where only the arm never reaches the level, all its updates stand for its time, and the figures are `at_most`;
    nothing is tested then. Where the other one does not, there are none.
    """
    times = [(time_to_level(arm, seed, runs), time_to_level(other, seed, runs)) for seed in seeds]
    censored = [seed for seed, (m, b) in zip(seeds, times, strict=True) if m is None or b is None]
    about: dict[str, Any] = {"times": times, "censored": censored, "at_most": bool(censored)}
    known = [(m or float(runs[arm, seed].versions[-1]), b) for seed, (m, b) in zip(seeds, times, strict=True) if b]
    if len(known) < len(seeds):
        empty = {"value": None, "low": None, "high": None, "p_value": None, "detectable": None}
        return about | empty | {"pairs": len(seeds) - len(censored)}
    found = asdict(estimate_paired([math.log(b / m) for m, b in known]))
    return about | found | ({"p_value": None, "detectable": None} if censored else {})


def judge_claims(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's claims of the trust weight, each with its verdict by the interval over seeds, and its figures.

    `shown`: above 0; `shown, but smaller`: above 0 and below what the paper states; `excluded`: holds 0 or lies below,
    and below what the paper states (all that figures that are `at_most` can tell); else `not shown`. A constant weight
    is none, so the claim over it is judged against `none`, and excluded only where the interval lies below 0.
    """
    by_key = {(c["measure"], c["arm"], c["other"]): c for c in comparisons}
    final, gold, time = (by_key.get((m, "proper", CONTROL)) for m in ("final reward", "final gold", "time"))
    stated = (
        ("trust weighting raises the reward by 1.7 %", final, 0.017 * final["of_other"] if final else None),
        ("it reaches the same reward 106 % faster", time, math.log(2.06)),
        ("it beats a constant weight (final gold)", gold, 0.0),
    )
    return [
        {"claim": claim, "verdict": _verdict(figures, least), "stated": least, "figures": figures}
        for claim, figures, least in stated
    ]


def _verdict(figures: dict[str, Any] | None, stated: float | None) -> str:
    if figures is None or figures["low"] is None or stated is None:
        return "not measured"
    is_smaller = figures["high"] < stated
    if figures.get("at_most"):
        return "excluded" if is_smaller else "not measured"
    if figures["low"] > 0:
        return "shown, but smaller" if is_smaller else "shown"
    return "excluded" if is_smaller else "not shown"
