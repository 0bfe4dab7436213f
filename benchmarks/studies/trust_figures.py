"""What `python -m benchmarks.studies.trust` found so far: a table for the terminal, CSV, and a figure."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies.trust_arms import CONTROL
from rlhf.reports.intervals import show_estimate
from rlhf.reports.pages import show
from rlhf.storage.atomic_files import atomic_write, atomic_write_text

COLOURS = {
    "none": "#8a8f98",
    "proper": "#4080e0",
    "release": "#c98a1b",
    "lower": "#2f9e62",
    "prefpaint": "#b0483a",
    "all": "#7d55c7",
}
"""`constant` is not drawn: its curve is that of `none`."""
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
"""Of arms, as readers know them."""


def list_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str, str, Any, Any, Any]]:
    """Arm or comparison, figure, seeds, value, low, high; empty where something was not measured."""
    for arm, figures in summary["arms"].items():
        seeds = len(figures["seeds"])
        for name in ("final_reward", "final_gold", "best_gold"):
            yield arm, name, str(seeds), *_interval(figures[name])
        for name, value in figures["spread"].items():
            yield arm, name, str(seeds), value, "", ""
        for name in ("reward", "gold"):
            for seed, rises in zip(figures["seeds"], figures[f"{name}_rise"], strict=True):
                for update, value in zip(figures["updates"], rises, strict=True):
                    yield arm, f"{name}_rise at {update}", f"seed {seed}", value, "", ""
    for entry in summary["comparisons"]:
        name, pairs, measure = f"{entry['arm']} over {entry['other']}", str(entry["pairs"]), entry["measure"]
        yield name, measure, pairs, *_interval(entry)
        if entry.get("over_photographs"):
            yield name, f"{measure}, over photographs", pairs, *_interval(entry["over_photographs"])
        yield name, f"{measure}, smallest detectable", pairs, _blank(entry["detectable"]), "", ""
        yield name, f"{measure}, p by Holm", pairs, _blank(entry["p_holm"]), "", ""


def _interval(estimate: dict[str, Any]) -> tuple[Any, Any, Any]:
    return _blank(estimate["value"]), _blank(estimate["low"]), _blank(estimate["high"])


def _blank(value: float | None) -> float | str:
    return "" if value is None or not math.isfinite(value) else value


def write_csv(summary: dict[str, Any], path: Path) -> None:
    """The long table; empty where something could not be measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["arm", "figure", "seeds", "value", "low", "high"])
    writer.writerows(list_rows(summary))
    atomic_write_text(path, buffer.getvalue())


def format_table(summary: dict[str, Any]) -> str:
    """The summary for the terminal: arms, comparisons, claims, and what is missing."""
    lines = [_title(summary), *_arm_lines(summary), "", *_comparison_lines(summary), ""]
    for entry in summary["claims"]:
        lines.append(f"claim: {entry['claim']}: {entry['verdict'].upper()} here{_claim_detail(entry)}")
    same = summary["constant_is_none"]
    if same is not None:
        says = "the same to the last bit" if same else "NOT the same, so runs are not repeatable on this machine"
        lines.append(f"constant weight and none: {says}; weights are divided by their mean, so it has to be")
    if summary["missing"]:
        lines.append(f"missing, {len(summary['missing'])} run(s): {'; '.join(summary['missing'])}")
    return "\n".join(lines)


def _title(summary: dict[str, Any]) -> str:
    return (
        "Rises over the base model, means over seeds [95 % by Student's t]; reward in sd of the normalised score, gold "
        f"judge (simulated) x 1000; the common reward is {summary['level_share']:.0%} of the highest rise of no weight"
    )


def _arm_lines(summary: dict[str, Any]) -> list[str]:
    head = f"{'arm':<28}{'seeds':>5} {'final reward':>22} {'final gold':>24} {'best gold':>24}"
    lines = [head + "  best at      over-optimises from  to common reward  weights' sd, late"]
    for arm, figures in summary["arms"].items():
        onsets = ["never" if onset is None else str(onset["peak"]) for onset in figures["onsets"]]
        last = figures["updates"][-1]
        times = [f">{last}" if t is None else f"{t:.0f}" for t in figures["updates_to_level"]]
        spread = [show(figures["spread"].get(f"{late}trust_weight_std"), ".3f") for late in ("", "late_")]
        lines.append(
            f"{LABELS[arm]:<28}{len(figures['seeds']):>5} {_show(figures['final_reward'], '.2f'):>22} "
            f"{_show(figures['final_gold'], '+.1f', 1000):>24} {_show(figures['best_gold'], '+.1f', 1000):>24}  "
            f"{' '.join(map(str, figures['best_gold_at'])):<12} {' '.join(onsets):<20} {' '.join(times):<17} "
            f"{', '.join(spread)}"
        )
    return lines


def _comparison_lines(summary: dict[str, Any]) -> list[str]:
    head = f"{'paired by seed':<44}{'measure':<14}{'pairs':>5} {'difference':>26}"
    lines = [head + "  smallest detectable  p (Holm)   over photographs"]
    for entry in summary["comparisons"]:
        name = f"{LABELS[entry['arm']]} less {LABELS[entry['other']]}"
        factor, form = (1000, "+.1f") if "gold" in entry["measure"] else (1, "+.3f")
        if entry["measure"] == "time" and entry["censored"]:
            at_most = "" if entry["value"] is None else f"at most {_show_speed(entry)}; "
            lines.append(f"{name:<44}{'time':<14}{entry['pairs']:>5} {at_most}{_describe_censored(entry)}")
            continue
        shown = _show_speed(entry) if entry["measure"] == "time" else _show(entry, form, factor)
        detectable = "-" if entry["detectable"] is None else show(entry["detectable"] * factor, form.replace("+", ""))
        p = "-" if entry["p_holm"] is None else show(entry["p_holm"], ".3f")
        wider = entry.get("over_photographs")
        lines.append(
            f"{name:<44}{entry['measure']:<14}{entry['pairs']:>5} {shown:>26}  {detectable:>19}  {p:>8}   "
            + ("" if wider is None else _show(wider, form, factor))
        )
    lines.append(
        "time: how much sooner the common reward is reached, T_other / T_arm - 1; detectable: of its logarithm"
    )
    return lines


def _describe_censored(entry: dict[str, Any]) -> str:
    reached = [f"{m:.0f} against {b:.0f}" if m and b else "not reached" for m, b in entry["times"]]
    return "updates to the common reward, by seed: " + ", ".join(reached)


def _show_speed(entry: dict[str, Any]) -> str:
    values = [entry[key] for key in ("value", "low", "high")]
    texts = ["-" if v is None else f"{math.exp(v) - 1:+.0%}" for v in values]
    return texts[0] if values[1] is None else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _claim_detail(entry: dict[str, Any]) -> str:
    figures = entry["figures"]
    if entry["verdict"] == "not measured":
        return ""
    if figures["measure"] == "time":
        return f"; {'at most ' if figures['at_most'] else ''}{_show_speed(figures)} with {figures['pairs']} seeds"
    if figures["measure"] == "final gold":
        return f"; {_show(figures, '+.1f', 1000)} / 1000 with {figures['pairs']} seeds"
    share = {key: figures[key] / figures["of_other"] for key in ("value", "low", "high")}
    return f"; {_show(share, '+.1%')} of the rise without it, with {figures['pairs']} seeds"


def _show(estimate: dict[str, Any], form: str, factor: float = 1.0) -> str:
    value, low, high = (None if estimate[k] is None else estimate[k] * factor for k in ("value", "low", "high"))
    return show_estimate({"value": value, "low": low, "high": high}, form, without="")


def draw_figure(summary: dict[str, Any], path: Path) -> None:
    """A PNG against updates: reward, gold judge, and gold less that of no weight of the same seed.

    Trust on the left, algorithm and latents on the right.
    """
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(3, 2, sharex=True, sharey="row")
    arms = summary["arms"]
    for column, names in enumerate(PANELS):
        shown = [name for name in names if name in arms]
        for row, rise in enumerate(("reward_rise", "gold_rise")):
            _draw_arms(axes[row][column], arms, {name: np.array(arms[name][rise]) for name in shown})
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


def pair_with_control(arms: dict[str, Any], name: str) -> np.ndarray:
    """Rises of gold less those of `none` of the same seed, [seeds, V], of the seeds that both have."""
    control = arms.get(CONTROL, {"seeds": [], "gold_rise": []})
    theirs = dict(zip(control["seeds"], control["gold_rise"], strict=True))
    ours = dict(zip(arms[name]["seeds"], arms[name]["gold_rise"], strict=True))
    pairs = [np.subtract(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return np.stack(pairs) if pairs else np.empty((0, len(arms[name]["updates"])))


def _draw_arms(axes: Axes, arms: dict[str, Any], curves: dict[str, np.ndarray]) -> None:
    for name in [name for name, values in curves.items() if len(values)]:
        updates, values = arms[name]["updates"], curves[name]
        label = f"{LABELS[name]} ({len(values)} seed{'s' if len(values) > 1 else ''})"
        axes.plot(updates, values.mean(axis=0), color=COLOURS[name], label=label)
        axes.fill_between(updates, values.min(axis=0), values.max(axis=0), color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.axhline(0, color="#3c4149", linewidth=0.6)
    axes.grid(color="#e3e4e8", linewidth=0.8)
    axes.spines[:].set_visible(False)
