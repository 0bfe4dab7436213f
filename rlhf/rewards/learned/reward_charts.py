"""Draws the charts of a reward model's figures; titles and captions are in the templates."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from rlhf.reports.charts import GOLD, GREY, REWARD, draw_chart, draw_lines
from rlhf.reports.intervals import Estimate
from rlhf.rewards.learned.reward_report import (
    BoundFigures,
    CalibrationPoint,
    EpochFigures,
    LevelCoverage,
    RewardReport,
    RiskCurve,
)

Charts = dict[str, dict[str, str]]
"""Data URIs by the name of the chart and the theme."""


def reward_charts(report: RewardReport) -> Charts:
    """Draws all charts of the reward's page.

    A value that could not be measured (NaN) is a gap; without a learning curve there is no chart of it.
    """
    charts = reliability_charts(report) | {
        "calibration": _calibration_chart(report.calibration_curve),
        "levels": _level_chart(report.coverage_by_level),
        "risk": _risk_chart(report.risk_coverage),
        "spectrum": _spectrum_chart(report.spectrum),
    }
    if report.learning_curve:
        charts["learning"] = _learning_chart(report.learning_curve)
    return charts


def reliability_charts(figures: BoundFigures) -> Charts:
    """Draws error and bound, and coverage, by fifths of the uncertainty."""
    fifths = figures.reliability
    errors = {"bound": (GREY, [f.bound for f in fifths]), "mean |error|": (REWARD, [f.error for f in fifths])}
    covered = {"": (REWARD, [fifth.coverage for fifth in fifths])}
    x, label = [fifth.uncertainty for fifth in fifths], "mean uncertainty of the fifth (no unit)"
    return {
        "errors": draw_lines(x, errors, label, "score (sd)"),
        "coverage": draw_lines(x, covered, label, "covered (share)", reference=figures.coverage_stated),
    }


def _calibration_chart(curve: Sequence[CalibrationPoint]) -> dict[str, str]:
    """Draws mean score against mean reward, with intervals; the dashed line marks equality."""
    x = np.array([point.reward for point in curve])

    def draw(axes: Axes) -> None:
        """Draws onto the axes."""
        ends = [float(x.min()), float(x.max())]
        axes.plot(ends, ends, "--", color=GREY, linewidth=1)
        axes.vlines(x, *_band([point.score for point in curve]), color=REWARD, alpha=0.45, linewidth=2)
        axes.plot(x, np.array([point.score.value for point in curve]), "o", color=REWARD, markersize=5)

    return draw_chart(draw, "mean reward of the group (sd)", "mean score (sd)")


def _level_chart(levels: Sequence[LevelCoverage]) -> dict[str, str]:
    """Draws measured against stated coverage, with intervals; the dashed line marks equality."""
    measured = [(row.level, row.coverage) for row in levels if row.coverage is not None]
    x = [level for level, _ in measured]

    def draw(axes: Axes) -> None:
        """Draws onto the axes."""
        axes.plot([0.5, 1], [0.5, 1], "--", color=GREY, linewidth=1)
        axes.fill_between(x, *_band([coverage for _, coverage in measured]), color=GREY, alpha=0.25, linewidth=0)
        axes.plot(x, [coverage.value for _, coverage in measured], ".-", color=REWARD, linewidth=1.6, markersize=8)

    return draw_chart(draw, "nominal coverage", "measured coverage")


def _risk_chart(curve: RiskCurve) -> dict[str, str]:
    series = {
        "random order": (GREY, curve.random),
        "by uncertainty": (REWARD, curve.model),
        "by the error itself": (GOLD, curve.oracle),
    }
    return draw_lines(curve.shares, series, "most certain annotations kept (share)", "mean |error| (sd)")


def _spectrum_chart(spectrum: list[float]) -> dict[str, str]:
    def draw(axes: Axes) -> None:
        """Draws onto the axes."""
        axes.bar(range(1, len(spectrum) + 1), spectrum, color=REWARD, width=0.8)

    return draw_chart(draw, "eigenvalue of Z′Z, by size", "part of the trace")


def _learning_chart(curve: Sequence[EpochFigures]) -> dict[str, str]:
    epochs = [line["epoch"] for line in curve]
    series = {"loss": (REWARD, [line["loss"] for line in curve])}
    if "validation" in curve[0]:
        series["validation"] = (GOLD, [line.get("validation", math.nan) for line in curve])
    return draw_lines(epochs, series, "epoch", "objective")


def _band(estimates: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper ends, [N] each."""
    return np.array([e.low for e in estimates]), np.array([e.high for e in estimates])
