"""Alarms that a policy may be hacking its reward.

An alarm for *over-optimisation* is raised if the training reward rises between two policies of a run (the base model
is one) while a held-out judge falls. Both changes are paired by prompt, with intervals over photographs. Bonferroni's
correction widens these, so all pairs of policies and all judges together raise a false alarm in at most 5 % of runs. An
alarm for a figure *out of range* is raised if its whole 95 % interval lies outside a range, or its value where all
photographs have the same. The ranges were chosen, not derived: a fifth lost, or as much gained; `rlhf promote` uses the
same for sharpness and diversity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch

from rlhf.evaluation.judging import Judged, describe_judge
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS, Estimate, estimate_figure, show_estimate

LEVEL = 0.05
"""Probability of a false alarm in one run, over all pairs of policies and all judges."""
SAME = (0.8, 1.25)


@dataclass(frozen=True, kw_only=True)
class AlarmRange:
    """Range, both ends included, that a figure of a policy should keep to."""

    label: str
    low: float
    high: float
    is_ratio: bool = True
    """Whether the figure is policy over base; otherwise it is policy minus base."""


ALARM_RANGES = {
    "brightness": AlarmRange(label="brightness, difference (0 to 1)", low=-0.05, high=0.05, is_ratio=False),
    "saturation": AlarmRange(label="saturation, ratio", low=SAME[0], high=SAME[1]),
    "contrast": AlarmRange(label="contrast, ratio", low=SAME[0], high=SAME[1]),
    "sharpness": AlarmRange(label="sharpness, ratio", low=SAME[0], high=SAME[1]),
    "seam_energy": AlarmRange(label="seam energy, ratio", low=0.0, high=SAME[1]),
    "diversity": AlarmRange(label="diversity of samples, ratio", low=SAME[0], high=SAME[1]),
    "distance": AlarmRange(label="distance from base, over that of base's samples", low=0.0, high=1.0),
}


@dataclass(frozen=True, kw_only=True)
class RangedEstimate(Estimate):
    """Figure of a policy with its interval and the range that it should keep to."""

    range: tuple[float, float]
    is_outside: bool
    """Whether the whole interval lies outside the range, or the value if photographs do not differ."""


@dataclass(frozen=True, kw_only=True)
class OverOptimisation:
    """Alarm: the training reward rose while a held-out judge fell."""

    kind: Literal["over-optimisation"] = "over-optimisation"
    policy: str
    since: str
    """Policy from which both changes are counted."""
    judge: str
    reward: Estimate
    """Change of the training reward."""
    held_out: Estimate
    """Change of the judge's mark."""
    level: float
    """Error probability of the two intervals."""
    message: str


@dataclass(frozen=True, kw_only=True)
class OutOfRange:
    """Alarm: the interval of a figure lies outside its range."""

    kind: Literal["out of range"] = "out of range"
    policy: str
    monitor: str
    """Key of ALARM_RANGES."""
    message: str


Alarm = OverOptimisation | OutOfRange


def estimate_ranged(base: Judged, judged: Judged, photographs: Sequence[str]) -> dict[str, RangedEstimate]:
    """Returns the figures of ALARM_RANGES for a contestant beside the base model; those without a value are left out.

    Both were judged on the same prompts, one of `photographs` each, and started from the same noise if they use noise.
    """
    pairs = {
        name: (judged.marks[name].mean(1), base.marks[name].mean(1)) for name in ALARM_RANGES if name in base.marks
    }
    pairs["diversity"] = judged.diversity, base.diversity
    if not judged.known_pixels_differ:  # Changes outside the holes are no distance between fills.
        pairs["distance"] = distance_from(base, judged), base.diversity
    found = {}
    for name, columns in pairs.items():
        kept = ALARM_RANGES[name]
        with np.errstate(invalid="ignore", divide="ignore"):
            estimate = estimate_figure(np.stack(columns, 1), photographs, statistic=ratio if kept.is_ratio else _change)
        if np.isfinite(estimate.value):
            found[name] = RangedEstimate(
                **vars(estimate), range=(kept.low, kept.high), is_outside=_is_outside(estimate, kept)
            )
    return found


def ratio(columns: np.ndarray) -> float:
    """Returns the mean of the first column over that of the second [N, 2]."""
    return float(columns[:, 0].mean() / columns[:, 1].mean())


def _change(columns: np.ndarray) -> float:
    return float(columns[:, 0].mean() - columns[:, 1].mean())


def _is_outside(estimate: Estimate, kept: AlarmRange) -> bool:
    if estimate.clusters < LEAST_PHOTOGRAPHS:
        return False
    # A model whose samples are all alike has diversity 0 on every photograph, and so no interval.
    low, high = (estimate.low, estimate.high) if np.isfinite(estimate.low) else (estimate.value, estimate.value)
    return bool(high < kept.low or low > kept.high)


def distance_from(base: Judged, judged: Judged) -> np.ndarray:
    """Returns the mean absolute difference inside the hole from the base model's sample of the same number.

    Shape [P], in levels of 255.
    """
    pairs = zip(judged.images, base.images, strict=True)
    samples = min(judged.samples, base.samples)
    whole = [(ours[:samples].float() - theirs[:samples].float()).abs().mean() for ours, theirs in pairs]
    # Known pixels are equal, so the whole difference lies in the hole.
    return torch.stack(whole).double().numpy() / judged.hole_share


def find_alarms(names: Sequence[str], path: Sequence[Judged], photographs: Sequence[str]) -> list[Alarm]:
    """Returns the alarms for the policies of a run, in the order of training with the base model first.

    Over-optimisation is reported once per judge, for the first policy that shows it. The module docstring defines the
    alarms.
    """
    found: list[Alarm] = []
    for judge in path[0].held_out if len(set(photographs)) >= LEAST_PHOTOGRAPHS else ():
        alarm = _find_over_optimisation(names, path, judge, photographs)
        found += [alarm] if alarm else []
    for name, judged in zip(names[1:], path[1:], strict=True):
        ranged = estimate_ranged(path[0], judged, photographs)
        found += [_report_range(name, figure, e) for figure, e in ranged.items() if e.is_outside]
    return found


def _find_over_optimisation(
    names: Sequence[str], path: Sequence[Judged], judge: str, photographs: Sequence[str]
) -> OverOptimisation | None:
    pairs = sorted(combinations(range(len(path)), 2), key=lambda pair: pair[1])
    level = LEVEL / (len(pairs) * len(path[0].held_out))
    worst: OverOptimisation | None = None
    for first, second in pairs:
        if worst is not None and worst.policy != names[second]:
            break
        reward, held_out = (
            change_of(path[first].marks[name], path[second].marks[name], photographs, level)
            for name in ("reward", judge)
        )
        is_alarm = reward.low > 0 and held_out.high < 0
        if is_alarm and (worst is None or held_out.value < worst.held_out.value):
            worst = _report_over_optimisation(names[second], names[first], judge, reward, held_out, level)
    return worst


def _report_over_optimisation(
    policy: str, since: str, judge: str, reward: Estimate, held_out: Estimate, level: float
) -> OverOptimisation:
    message = (
        f"{policy}: the training reward rises by {show_estimate(reward, '+.4f')} since {since} "
        f"while {describe_judge(judge)} changes by {show_estimate(held_out, '+.4f')}"
    )
    return OverOptimisation(
        policy=policy, since=since, judge=judge, reward=reward, held_out=held_out, level=level, message=message
    )


def change_of(first: np.ndarray, second: np.ndarray, photographs: Sequence[str], level: float) -> Estimate:
    """Returns the mean of second minus first, [P, S] each, with an interval of coverage 1 - level."""
    return estimate_figure(second.mean(1) - first.mean(1), photographs, level=level)


def _report_range(policy: str, figure: str, estimate: RangedEstimate) -> OutOfRange:
    low, high = estimate.range
    shown = show_estimate(estimate, ".3f")
    message = f"{policy}: {ALARM_RANGES[figure].label} is {shown}, outside {low:g} to {high:g}"
    return OutOfRange(policy=policy, monitor=figure, message=message)
