"""Results of the study of trust: tables for the terminal, a long table for CSV, and a figure."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies.trust_arms import CONTROL
from benchmarks.studies.trust_records import ArmFigures, Claim, RiseComparison, TimeComparison, TrustSummary
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS, Estimate, Interval, show_estimate
from rlhf.reports.pages import show
from rlhf.storage.atomic_files import atomic_write

COLOURS = {
    "none": "#8a8f98",
    "proper": "#4080e0",
    "release": "#c98a1b",
    "lower": "#2f9e62",
    "prefpaint": "#b0483a",
    "all": "#7d55c7",
}
"""Colours of the arms; `constant` is not drawn, since its curve is that of `none`."""
PANELS = (("none", "proper", "release", "lower"), ("none", "prefpaint", "all"))
LABELS = {
    "none": "no weight",
    "proper": "proper norm",
    "release": "released norm",
    "lower": "lower bound",
    "prefpaint": "prefpaint, not grpo",
    "all": "all latents, not the hole's",
    "constant": "constant weight",
}
"""Names of the arms for a reader."""


def tabulate(summary: TrustSummary) -> pd.DataFrame:
    """Returns one row per figure of an arm or comparison; figures that were not measured are missing."""
    return pd.DataFrame(_list_rows(summary), columns=["arm", "figure", "seeds", "value", "low", "high"])


def _list_rows(summary: TrustSummary) -> Iterator[tuple[str, str, str, float | None, float | None, float | None]]:
    for arm, own in summary.arms.items():
        seeds = str(len(own.seeds))
        for name in ("final_reward", "final_gold", "best_gold"):
            yield arm, name, seeds, *_ends(getattr(own, name))
        for name, value in own.spread.items():
            yield arm, name, seeds, value, None, None
        for name, by_seed in (("reward_rise", own.reward_rise), ("gold_rise", own.gold_rise)):
            for seed, rises in zip(own.seeds, by_seed, strict=True):
                for update, value in zip(own.updates, rises, strict=True):
                    yield arm, f"{name} at {update}", f"seed {seed}", value, None, None
    for entry in summary.comparisons:
        name, pairs, measure = f"{entry.arm} over {entry.other}", str(entry.pairs), entry.measure
        yield name, measure, pairs, *_ends(entry)
        if isinstance(entry, RiseComparison) and entry.over_photographs is not None:
            yield name, f"{measure}, over photographs", pairs, *_ends(entry.over_photographs)
        yield name, f"{measure}, smallest detectable", pairs, entry.detectable, None, None
        yield name, f"{measure}, p by Holm", pairs, entry.p_holm, None, None


def _ends(estimate: Interval) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def format_table(summary: TrustSummary) -> str:
    """Formats arms, comparisons, claims and missing runs for the terminal."""
    unit = (
        "time: T_other / T_arm - 1 for the updates to the common reward; detectable: of the logarithm of the quotient"
    )
    lines = [_title(summary), _format_arms(summary), "", _format_comparisons(summary), unit, ""]
    lines += [f"claim: {c.claim}: {c.verdict.upper()} here{_claim_detail(c)}" for c in summary.claims]
    same = summary.constant_is_none
    if same is not None:
        says = "the same to the last bit" if same else "NOT the same, so runs are not repeatable on this machine"
        lines.append(f"constant weight and none: {says}; weights are divided by their mean, so they must be equal")
    if summary.missing:
        lines.append(f"missing, {len(summary.missing)} run(s): {'; '.join(summary.missing)}")
    return "\n".join(lines)


def _title(summary: TrustSummary) -> str:
    return (
        "Rises over the base model, means over seeds [95 % by Student's t]; reward in sd of the normalised score, gold "
        f"judge (simulated) x 1000; the common reward is {summary.level_share:.0%} of the highest rise of no weight"
    )


def _format_arms(summary: TrustSummary) -> str:
    rows = {}
    for arm, own in summary.arms.items():
        spread = [show(own.spread.get(f"{late}trust_weight_std"), ".3f") for late in ("", "late_")]
        times = [f">{own.updates[-1]}" if time is None else f"{time:.0f}" for time in own.updates_to_level]
        rows[LABELS[arm]] = {
            "seeds": len(own.seeds),
            "final reward": _show(own.final_reward, ".2f"),
            "final gold": _show(own.final_gold, "+.1f", 1000),
            "best gold": _show(own.best_gold, "+.1f", 1000),
            "best at": " ".join(map(str, own.best_gold_at)),
            "over-optimises from": " ".join("never" if onset is None else str(onset.peak) for onset in own.onsets),
            "to common reward": " ".join(times),
            "weights' sd, late": ", ".join(spread),
        }
    return pd.DataFrame.from_dict(rows, orient="index").to_string() if rows else "no arm is finished"


def _format_comparisons(summary: TrustSummary) -> str:
    rows = []
    for entry in summary.comparisons:
        factor, form = (1000, "+.1f") if "gold" in entry.measure else (1, "+.3f")
        detectable, wider = entry.detectable, entry.over_photographs if isinstance(entry, RiseComparison) else None
        rows.append(
            {
                "paired by seed": f"{LABELS[entry.arm]} less {LABELS[entry.other]}",
                "measure": entry.measure,
                "pairs": entry.pairs,
                "difference": _show_time(entry) if isinstance(entry, TimeComparison) else _show(entry, form, factor),
                "detectable": "-" if detectable is None else show(detectable * factor, form.replace("+", "")),
                "p (Holm)": "-" if entry.p_holm is None else show(entry.p_holm, ".3f"),
                "over photographs": "" if wider is None else _show(wider, form, factor),
            }
        )
    return pd.DataFrame(rows).to_string(index=False) if rows else "no pair is finished"


def _show_time(entry: TimeComparison) -> str:
    if not entry.censored:
        return _show_speed(entry)
    reached = [f"{m:.0f} against {b:.0f}" if m and b else "not reached" for m, b in entry.times]
    at_most = "" if entry.value is None else f"at most {_show_speed(entry)}; "
    return f"{at_most}updates to the common reward, by seed: {', '.join(reached)}"


def _show_speed(entry: Interval) -> str:
    texts = ["-" if v is None else f"{math.exp(v) - 1:+.0%}" for v in _ends(entry)]
    return texts[0] if entry.low is None else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _claim_detail(claim: Claim) -> str:
    figures = claim.figures
    if claim.verdict == "not measured" or figures is None:
        return ""
    if isinstance(figures, TimeComparison):
        return f"; {'at most ' if figures.at_most else ''}{_show_speed(figures)} with {figures.pairs} seeds"
    if figures.measure == "final gold":
        return f"; {_show(figures, '+.1f', 1000)} / 1000 with {figures.pairs} seeds"
    return f"; {_show(figures, '+.1%', 1 / figures.of_other)} of the rise without it, with {figures.pairs} seeds"


def _show(estimate: Interval, form: str, factor: float = 1.0) -> str:
    value, low, high = (math.nan if end is None else end * factor for end in _ends(estimate))
    return show_estimate(Estimate(value=value, low=low, high=high, clusters=LEAST_PHOTOGRAPHS), form, without="")


def draw_figure(summary: TrustSummary, path: Path) -> None:
    """Draws reward, gold judge, and gold minus that of `none` with the same seed, against updates, as a PNG.

    Arms of trust are on the left; algorithm and latents are on the right.
    """
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True, sharey="row")
    arms = summary.arms
    for column, names in enumerate(PANELS):
        shown = [name for name in names if name in arms]
        for row, rise in enumerate(("reward_rise", "gold_rise")):
            _draw_arms(axes[row][column], arms, {name: np.array(getattr(arms[name], rise)) for name in shown})
        _draw_arms(axes[2][column], arms, {name: pair_with_control(arms, name) for name in shown if name != CONTROL})
        if shown:
            axes[0][column].legend(frameon=False, fontsize=9)
    axes[0][0].set(ylabel="reward that is climbed: rise, sd", title="trust")
    axes[0][1].set(title="algorithm, and what log-probs look at")
    axes[1][0].set(ylabel="gold judge (simulated): rise")
    axes[2][0].set(ylabel="gold less that of no weight", xlabel="updates")
    axes[2][1].set(xlabel="updates")
    figure.suptitle("Held-out photographs: means over seeds; bands: from the lowest to the highest seed", fontsize=10)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def pair_with_control(arms: Mapping[str, ArmFigures], name: str) -> np.ndarray:
    """Returns rises of gold minus those of `none` [seeds, V], for the seeds that both have."""
    theirs = dict(zip(arms[CONTROL].seeds, arms[CONTROL].gold_rise, strict=True)) if CONTROL in arms else {}
    ours = dict(zip(arms[name].seeds, arms[name].gold_rise, strict=True))
    pairs = [np.subtract(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return np.stack(pairs) if pairs else np.empty((0, len(arms[name].updates)))


def _draw_arms(axes: Axes, arms: Mapping[str, ArmFigures], curves: dict[str, np.ndarray]) -> None:
    for name in [name for name, values in curves.items() if len(values)]:
        updates, values = arms[name].updates, curves[name]
        label = f"{LABELS[name]} ({len(values)} seed{'s' if len(values) > 1 else ''})"
        axes.plot(updates, values.mean(axis=0), color=COLOURS[name], label=label)
        axes.fill_between(updates, values.min(axis=0), values.max(axis=0), color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.axhline(0, color="#3c4149", linewidth=0.6)
    axes.grid(color="#e3e4e8", linewidth=0.8)
    axes.spines[:].set_visible(False)
