"""Draws the charts of a reward model's figures; titles and captions are in the templates."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rlhf.reports.charts import GOLD, GREY, REWARD, draw_chart, draw_lines

Charts = dict[str, dict[str, str]]
"""Data URIs by the name of the chart and the theme."""


def reward_charts(figures: dict[str, Any]) -> Charts:
    """Draws all charts of the reward's page, from the record in `report.json`.

    A value that could not be measured (None, NaN) is a gap; without a learning curve there is no chart of it.
    """
    charts = reliability_charts(figures) | {
        "calibration": _calibration_chart(figures["calibration_curve"]),
        "levels": _level_chart(figures["coverage_by_level"]),
        "risk": _risk_chart(figures["risk_coverage"]),
        "spectrum": _spectrum_chart(figures["spectrum"]),
    }
    if figures["learning_curve"]:
        charts["learning"] = _learning_chart(figures["learning_curve"])
    return charts


def reliability_charts(figures: dict[str, Any]) -> Charts:
    """Draws error and bound, and coverage, by fifths of the uncertainty."""
    fifths = {
        key: [row[key] for row in figures["reliability"]] for key in ("uncertainty", "error", "bound", "coverage")
    }
    errors = {"bound": (GREY, fifths["bound"]), "mean |error|": (REWARD, fifths["error"])}
    x, label, stated = fifths["uncertainty"], "mean uncertainty of the fifth (no unit)", figures["coverage_stated"]
    return {
        "errors": draw_lines(x, errors, label, "score (sd)"),
        "coverage": draw_lines(x, {"": (REWARD, fifths["coverage"])}, label, "covered (share)", reference=stated),
    }


def _calibration_chart(curve: list[dict[str, Any]]) -> dict[str, str]:
    """Draws mean score against mean reward, with intervals; the dashed line marks equality."""
    x = _numbers([row["reward"] for row in curve])

    def draw(axes: Axes) -> None:
        ends = [float(x.min()), float(x.max())]
        axes.plot(ends, ends, "--", color=GREY, linewidth=1)
        axes.vlines(x, *_band([row["score"] for row in curve]), color=REWARD, alpha=0.45, linewidth=2)
        axes.plot(x, _numbers([row["score"]["value"] for row in curve]), "o", color=REWARD, markersize=5)

    return draw_chart(draw, "mean reward of the group (sd)", "mean score (sd)")


def _level_chart(levels: list[dict[str, Any]]) -> dict[str, str]:
    """Draws measured against stated coverage, with intervals; the dashed line marks equality."""
    measured = [row for row in levels if row["coverage"] is not None]
    x = [row["level"] for row in measured]

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], "--", color=GREY, linewidth=1)
        axes.fill_between(x, *_band([row["coverage"] for row in measured]), color=GREY, alpha=0.25, linewidth=0)
        axes.plot(x, [row["coverage"]["value"] for row in measured], ".-", color=REWARD, linewidth=1.6, markersize=8)

    return draw_chart(draw, "nominal coverage", "measured coverage")


def _risk_chart(curve: dict[str, list[float]]) -> dict[str, str]:
    series = {
        "random order": (GREY, curve["random"]),
        "by uncertainty": (REWARD, curve["model"]),
        "by the error itself": (GOLD, curve["oracle"]),
    }
    return draw_lines(curve["shares"], series, "most certain annotations kept (share)", "mean |error| (sd)")


def _spectrum_chart(spectrum: list[float]) -> dict[str, str]:
    def draw(axes: Axes) -> None:
        axes.bar(range(1, len(spectrum) + 1), _numbers(spectrum), color=REWARD, width=0.8)

    return draw_chart(draw, "eigenvalue of Z′Z, by size", "part of the trace")


def _learning_chart(curve: list[dict[str, Any]]) -> dict[str, str]:
    epochs = [line["epoch"] for line in curve]
    series = {"loss": (REWARD, _numbers([line.get("loss") for line in curve]).tolist())}
    if "validation" in curve[0]:
        series["validation"] = (GOLD, _numbers([line.get("validation") for line in curve]).tolist())
    return draw_lines(epochs, series, "epoch", "objective")


def _band(estimates: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper ends, [N] each."""
    return _numbers([e["low"] for e in estimates]), _numbers([e["high"] for e in estimates])


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """Returns the values as [N], with NaN for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=float)
