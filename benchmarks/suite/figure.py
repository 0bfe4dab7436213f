"""Draws the figure of the suite: a panel for each of its larger parts that has been measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.measure import Figures
from rlhf.reports.charts import GOLD, GREY, REWARD
from rlhf.storage.atomic_files import atomic_write

INK, FAINT = "#3c4149", "#e3e4e8"
PANELS = ("rollout", "update", "whole_step", "switches")
PHASES = {
    "rollouts": "rollouts and scoring",
    "training": "training",
    "weights": "weights to samplers",
    "control": "control",
    "samplers_idle": "samplers idle",
    "learner_idle": "learner idle",
}
MODES = {"sync": REWARD, "overlapped": GOLD}


def draw_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draws medians and quartiles as a PNG, two panels in a row; draws nothing if no such part has been measured."""
    parts = [part for part in PANELS if part in results]
    if not parts:
        return
    pairs = [parts[first : first + 2] for first in range(0, len(parts), 2)]
    heights = [0.9 + 0.33 * max(len(_rows_of(part, results[part])) for part in pair) for pair in pairs]
    figure = Figure(figsize=(7 * len(pairs[0]), sum(heights) + 0.4), layout="constrained")
    grid = figure.add_gridspec(len(pairs), len(pairs[0]), height_ratios=heights)
    for row, pair in enumerate(pairs):
        for column, part in enumerate(pair):
            _draw_panel(figure.add_subplot(grid[row, column]), part, results[part])
    machine = results.get("machine", {})
    where = ", ".join(str(machine[key]) for key in ("cpu", "gpu") if key in machine)
    figure.suptitle(f"Medians and quartiles, built-in model; {where}", fontsize=10, color=INK)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _rows_of(part: str, figures: Figures) -> list[str]:
    """Returns the labels from top to bottom."""
    if part == "whole_step":
        return list(PHASES.values())
    return list(figures if part == "switches" else figures[_quantity(part)])


def _quantity(part: str) -> str:
    return {"rollout": "images_per_s", "update": "ms_per_transition"}[part]


def _draw_panel(axes: Axes, part: str, figures: Figures) -> None:
    labels = _rows_of(part, figures)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    if part == "switches":
        _draw_switches(axes, figures)
    elif part == "whole_step":
        _draw_phases(axes, figures)
    else:
        _draw_rows(axes, list(figures[_quantity(part)].items()))
    titles = {
        "rollout": ("Rollouts", "images/s (more is better)"),
        "update": ("Training", "ms per transition (less is better)"),
        "whole_step": ("Whole updates", "share of an update's time"),
        "switches": ("Switches", "time without the switch over time with it"),
    }
    title, xlabel = titles[part]
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", colors=INK, labelsize=9)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.spines[:].set_visible(False)


def _draw_rows(axes: Axes, rows: list[tuple[str, Mapping[str, float]]]) -> None:
    """Draws bars from zero; alternatives to ours are grey."""
    for place, (name, spread) in enumerate(rows):
        is_ours = name.startswith(("ours", "LoRA", "full"))
        _draw_bar(axes, place, spread, REWARD if is_ours else GREY, 0.62)


def _draw_bar(axes: Axes, place: float, spread: Mapping[str, float], colour: str, height: float) -> Any:
    bar = axes.barh(place, spread["median"], height=height, color=colour)
    axes.plot([spread["low"], spread["high"]], [place, place], color=INK, linewidth=1.2)
    _annotate(axes, f"{spread['median']:.3g}", max(spread["median"], spread["high"]), place)
    axes.set_xlim(right=max(axes.get_xlim()[1], 1.12 * spread["high"]))
    return bar


def _annotate(axes: Axes, text: str, x: float, place: float) -> None:
    """Writes text to the right of a mark."""
    axes.annotate(text, (x, place), xytext=(6, 0), textcoords="offset points", fontsize=8, color=INK, va="center")


def _draw_phases(axes: Axes, figures: Figures) -> None:
    for number, (mode, colour) in enumerate(MODES.items()):
        for place, share in enumerate(PHASES):
            if share in figures[mode]["shares"]:
                bar = _draw_bar(axes, place + 0.36 * number - 0.18, figures[mode]["shares"][share], colour, 0.34)
        bar.set_label(mode)
    _add_legend(axes)


def _draw_switches(axes: Axes, figures: Figures) -> None:
    """Draws points; a switch pays if its point lies to the right of 1."""
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=0.8)
    edges = [0.9, 1.2]
    for place, record in enumerate(figures.values()):
        if "left_out" in record:
            _annotate(axes, f"not measured: {record['left_out']}", 1, place)
            continue
        spread, colour = record["off_over_on"], REWARD if record["kept"] else GREY
        axes.plot([spread["low"], spread["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(spread["median"], place, "o", color=colour, markersize=6)
        _annotate(axes, f"{spread['median']:.2f}", spread["high"], place)
        edges += [spread["low"], spread["high"]]
    for label, colour in {"on by default": REWARD, "off by default": GREY}.items():
        axes.plot([], [], "o", color=colour, label=label)
    _add_legend(axes)
    axes.set_xticks([0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30])
    axes.set_xlim(0.95 * min(edges), 1.2 * max(edges))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _add_legend(axes: Axes) -> None:
    """Adds a legend beside the title, where it hides nothing."""
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
    )
