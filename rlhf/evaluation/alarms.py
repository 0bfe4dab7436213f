"""Is a policy hacking its reward? What its fills look like beside the base model's, and when to raise an alarm.

Two kinds of alarm. *Over-optimisation*: between two policies of a run (the base model among them) the training reward
rises while a held-out judge falls. Both changes are paired by prompt; their intervals are value +- t x standard error,
the error by bootstrap over photographs, t of as many degrees of freedom as photographs less one, and so wide that all
pairs of policies and all judges together raise a false alarm in at most 5 % of runs (Bonferroni). *Out of range*: the
whole 95 % interval of a monitor lies outside its range. The ranges were chosen, not derived: a fifth lost, or as much
gained; `rlhf promote` has the same for sharpness and diversity.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rlhf.evaluation.judging import JUDGE, Judged
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS, Estimate, bootstrap_means, summarise_draws

LEVEL = 0.05
"""Of false alarms about one run, all pairs and judges together."""
SAME = (0.8, 1.25)


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """One thing that is watched."""

    label: str
    low: float
    high: float
    """Where it should stay, both ends included."""
    is_ratio: bool = True
    """Policy over base; else policy less base."""


MONITORS = {
    "brightness": Monitor(label="brightness, difference (0 to 1)", low=-0.05, high=0.05, is_ratio=False),
    "saturation": Monitor(label="saturation, ratio", low=SAME[0], high=SAME[1]),
    "contrast": Monitor(label="contrast, ratio", low=SAME[0], high=SAME[1]),
    "sharpness": Monitor(label="sharpness, ratio", low=SAME[0], high=SAME[1]),
    "seam_energy": Monitor(label="seam energy, ratio", low=0.0, high=SAME[1]),
    "diversity": Monitor(label="diversity of samples, ratio", low=SAME[0], high=SAME[1]),
    "distance": Monitor(label="distance from base, over that of base's samples", low=0.0, high=1.0),
}


def watch(base: Judged, judged: Judged, photographs: Sequence[str], resamples: int) -> dict[str, dict[str, Any]]:
    """By MONITORS the estimate over photographs, with `range` and `is_outside`; what has no value is left out.

    Both were judged on the same prompts, of `photographs`, from the same noise where they use noise.
    """
    pairs = {name: (judged.marks[name].mean(1), base.marks[name].mean(1)) for name in MONITORS if name in base.marks}
    pairs["diversity"] = judged.diversity, base.diversity
    if not judged.known_pixels_differ:  # what was changed outside the holes is no distance of fills
        pairs["distance"] = distance_from(base, judged), base.diversity
    values, draws = bootstrap_means(
        np.stack([column for pair in pairs.values() for column in pair], axis=1), photographs, resamples=resamples
    )
    found = {}
    for place, name in enumerate(pairs):
        monitor = MONITORS[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            value, drawn = (
                each[..., 2 * place] / each[..., 2 * place + 1]
                if monitor.is_ratio
                else each[..., 2 * place] - each[..., 2 * place + 1]
                for each in (values, draws)
            )
        if np.isfinite(value):
            estimate = summarise_draws(value, drawn, len(set(photographs)))
            is_outside = estimate.high < monitor.low or estimate.low > monitor.high
            found[name] = asdict(estimate) | {"range": [monitor.low, monitor.high], "is_outside": is_outside}
    return found


def distance_from(base: Judged, judged: Judged) -> np.ndarray:
    """[P]: mean absolute difference inside the hole from the base model's sample of the same number, of 255."""
    pairs = zip(judged.images, base.images, strict=True)
    samples = min(judged.images.shape[1], base.images.shape[1])
    whole = [(ours[:samples].float() - theirs[:samples].float()).abs().mean() for ours, theirs in pairs]
    # Known pixels are equal, so all of the difference is the hole's.
    return torch.stack(whole).double().numpy() / judged.hole_share


def find_alarms(
    names: Sequence[str], path: Sequence[Judged], photographs: Sequence[str], resamples: int
) -> list[dict[str, Any]]:
    """Alarms about policies in the order of their training, the base model first; see the head of this file.

    Each has `kind`, `policy` (of `names`) and a `message`; of over-optimisation the first policy by each judge.
    """
    found = []
    for judge in path[0].held_out if len(set(photographs)) >= LEAST_PHOTOGRAPHS else ():
        alarm = _over_optimised(names, path, judge, photographs, resamples)
        found += [alarm] if alarm else []
    for name, judged in zip(names[1:], path[1:], strict=True):
        for monitor, figure in watch(path[0], judged, photographs, resamples).items():
            if figure["is_outside"]:
                found.append(_describe_range(name, monitor, figure))
    return found


def _over_optimised(
    names: Sequence[str], path: Sequence[Judged], judge: str, photographs: Sequence[str], resamples: int
) -> dict[str, Any] | None:
    pairs = sorted(combinations(range(len(path)), 2), key=lambda pair: pair[1])
    level = LEVEL / (len(pairs) * len(path[0].held_out))
    worst: dict[str, Any] | None = None
    for first, second in pairs:
        if worst is not None and worst["policy"] != names[second]:
            break
        reward, held_out = (
            change_of(path[first].marks[name], path[second].marks[name], photographs, level, resamples)
            for name in ("reward", judge)
        )
        is_alarm = reward.low > 0 and held_out.high < 0
        if is_alarm and (worst is None or held_out.value < worst["held_out"]["value"]):
            worst = {
                "kind": "over-optimisation",
                "policy": names[second],
                "since": names[first],
                "judge": judge,
                "reward": asdict(reward),
                "held_out": asdict(held_out),
                "level": level,
            }
    if worst is None:
        return None
    changes = (
        f"{worst[k]['value']:+.4f} [{worst[k]['low']:+.4f}, {worst[k]['high']:+.4f}]" for k in ("reward", "held_out")
    )
    by = "the gold judge (simulated)" if judge == "gold" else judge.removeprefix(JUDGE)
    message = "{}: the training reward rises by {} since {} while {} changes by {}"
    return worst | {"message": message.format(worst["policy"], next(changes), worst["since"], by, next(changes))}


def change_of(
    first: np.ndarray, second: np.ndarray, photographs: Sequence[str], level: float, resamples: int
) -> Estimate:
    """Mean of second less first [P, S], with an interval of coverage 1 - level; see the head of this file."""
    from scipy.stats import t

    difference = (second.mean(1) - first.mean(1))[:, None]
    value, draws = bootstrap_means(difference, photographs, resamples=resamples)
    count = len(set(photographs))
    # A bootstrap's standard error is that of the biased variance.
    error = draws.std() * math.sqrt(count / (count - 1))
    half = float(t.ppf(1 - level / 2, count - 1) * error)
    return Estimate(value=float(value[0]), low=float(value[0]) - half, high=float(value[0]) + half, clusters=count)


def _describe_range(policy: str, monitor: str, figure: dict[str, Any]) -> dict[str, Any]:
    low, high = figure["range"]
    return {
        "kind": "out of range",
        "policy": policy,
        "monitor": monitor,
        "message": f"{policy}: {MONITORS[monitor].label} is {figure['value']:.3f} "
        f"[{figure['low']:.3f}, {figure['high']:.3f}], outside {low:g} to {high:g}",
    }
