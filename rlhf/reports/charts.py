"""Charts for the HTML pages, drawn by matplotlib: one SVG data URI per colour theme."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.reports.intervals import Estimate
from rlhf.reports.pages import data_uri, show

REWARD, GOLD, GREY = "#4080e0", "#c98a1b", "#8a8f98"
INK, FAINT = "#010203", "#040506"
"""Placeholder colours, replaced by those of each theme."""
THEMES = {"light": {INK: "#3c4149", FAINT: "#e3e4e8"}, "dark": {INK: "#b9bec7", FAINT: "#343840"}}
Series = dict[str, tuple[str, list[float]]]
"""Curves of a chart by name: colour and values."""


def draw_chart(draw: Callable[[Axes], Any], xlabel: str, ylabel: str, height: float = 2.6) -> dict[str, str]:
    """Returns an SVG as data URIs by theme; `height` in inches. Text stays text in the page's own font."""
    with rc_context({"svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "legend.frameon": False}):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
        axes.tick_params(length=0, colors=INK)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.spines[:].set_visible(False)
        if "(share)" in xlabel:
            axes.set_xlim(-0.03, 1.03)
        if "(share)" in ylabel:
            axes.set_ylim(-0.03, 1.03)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Helvetica, Arial")
    themed = {theme: svg.replace(INK, c[INK]).replace(FAINT, c[FAINT]) for theme, c in THEMES.items()}
    return {theme: data_uri(text.encode(), "svg+xml") for theme, text in themed.items()}


def draw_lines(
    x: Sequence[float],
    series: Series,
    xlabel: str,
    ylabel: str,
    *,
    band: Sequence[Estimate] | None = None,
    reference: float | None = None,
) -> dict[str, str]:
    """Draws curves, the intervals of `band` [N] as an area, and a dashed line at `reference`."""

    def draw(axes: Axes) -> None:
        """Draws the curves, the area and the line."""
        for name, (colour, values) in series.items():
            axes.plot(x, values, ".-", color=colour, label=name, linewidth=1.6, markersize=8 if len(x) < 10 else 4)
        if band is not None:
            lows, highs = np.array([(e.low, e.high) for e in band]).T
            axes.fill_between(x, lows, highs, color=GREY, alpha=0.25, linewidth=0)
        if reference is not None:
            axes.axhline(reference, color=GREY, linestyle="--", linewidth=1)
        if len(series) > 1:
            axes.legend(fontsize=9)

    return draw_chart(draw, xlabel, ylabel)


def draw_forest(estimates: Mapping[str, Estimate], label: str, reference: float) -> dict[str, str]:
    """Draws one row per estimate with its interval, and a dashed line at `reference`."""

    def draw(axes: Axes) -> None:
        """Draws the rows and the line."""
        axes.axvline(reference, color=GREY, linestyle="--", linewidth=1)
        for row, e in enumerate(estimates.values()):
            axes.plot([e.low, e.value, e.high], [row] * 3, "o-", color=GOLD, markevery=[1], linewidth=2)
        names = [f"{name.replace('_', ' ')}  {show(e.value, '.2f')}" for name, e in estimates.items()]
        axes.set_yticks(range(len(estimates)), names)
        axes.set_ylim(len(estimates) - 0.5, -0.5)

    return draw_chart(draw, label, "", 0.8 + 0.34 * len(estimates))
