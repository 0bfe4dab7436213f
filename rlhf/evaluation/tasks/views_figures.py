"""Results of the study of new views: a table for the terminal, a long table for CSV, and a figure."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.evaluation.tasks.views_records import FillFigures, PartFigures, ViewsSummary
from rlhf.reports.charts import GOLD, GREY, REWARD
from rlhf.reports.intervals import Interval, show_estimate
from rlhf.storage.atomic_files import atomic_write

COLOURS = {"base": GREY, "aligned": REWARD}
SHOWN = {"completeness": (".3f", ""), "accuracy": (".3f", ""), "psnr": (".2f", " dB"), "psnr_unseen": (".2f", " dB")}
"""Figures of scenes in the terminal, with format and unit; the differences omit the accuracy."""


def tabulate(summary: ViewsSummary) -> pd.DataFrame:
    """Returns one row per figure; figures that could not be measured are missing."""
    rows = [
        (*names, *((estimate.value, estimate.low, estimate.high) if estimate else (None,) * 3))
        for *names, estimate in _list_figures(summary)
    ]
    return pd.DataFrame(rows, columns=["test", "part", "filler", "figure", "value", "low", "high"])


def _list_figures(summary: ViewsSummary) -> Iterator[tuple[str, str, str, str, Interval | None]]:
    for shrink, parts in summary.motorcycle.items():
        for part, found in parts.items():
            for name, figures in (found.fillers | {"aligned over base": found.aligned_over_base}).items():
                yield _pair_name(shrink), part, name, "psnr_db", figures
                yield _pair_name(shrink), part, name, "ssim", figures.ssim
    for name, estimates in (summary.scenes.means | summary.scenes.differences).items():
        for figure, estimate in estimates.items():
            yield "scenes", "cloud", name, figure, estimate


def _pair_name(shrink: str) -> str:
    return "motorcycle" if shrink == "1" else f"motorcycle, 1/{shrink} of its size"


def format_table(summary: ViewsSummary) -> str:
    """Formats the summary for the terminal."""
    lines = []
    for shrink, parts in summary.motorcycle.items():
        lines.append(f"{_pair_name(shrink)}: the true right view against the filled one, {summary.seeds} seed(s)")
        for part in ("hole", "behind", "outside"):
            if part in parts:
                lines += [f"{part} ({parts[part].pixels} pixels)", _format_part(parts[part])]
        seen = _show_fill(parts["seen"].fillers["base"], "")
        lines.append(f"for scale, what was warped and not filled: PSNR {seen[0]}, SSIM {seen[1]}")
    scenes = summary.scenes
    lines.append(f"{scenes.count} synthetic scenes: cloud fused from one known and four filled views")
    fewer = [name for name in SHOWN if name != "accuracy"]
    for rows, sign, names in ((scenes.means, "", list(SHOWN)), (scenes.differences, "+", fewer)):
        cells = [[_show(own[name], sign + SHOWN[name][0], SHOWN[name][1]) for name in names] for own in rows.values()]
        lines.append(pd.DataFrame(cells, index=list(rows), columns=names).to_string())
    lines.append("95 % intervals: of the motorcycle over regions of one scene; of the scenes over scenes")
    return "\n".join([*lines, *summary.notes])


def _format_part(found: PartFigures) -> str:
    rows = {name: _show_fill(own, "") for name, own in found.fillers.items()}
    rows["aligned over base"] = _show_fill(found.aligned_over_base, "+")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["PSNR", "SSIM"]).to_string()


def _show_fill(figures: FillFigures, sign: str) -> tuple[str, str]:
    return _show(figures, f"{sign}.2f", " dB"), _show(figures.ssim, f"{sign}.4f" if sign else ".3f")


def _show(estimate: Interval | None, form: str, unit: str = "") -> str:
    return "not measured" if estimate is None else show_estimate(estimate, form) + unit


def draw_figure(summary: ViewsSummary, path: Path) -> None:
    """Draws a PNG: PSNR in the motorcycle's hole, completeness of the cloud, and PSNR of unseen pixels."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    hole, cloud, unseen = figure.subplots(1, 3)
    shrink, parts = next(iter(summary.motorcycle.items()))
    title = f"{_pair_name(shrink)}; intervals over regions of one scene"
    _draw_rows(hole, parts["hole"].fillers, "PSNR inside the hole, dB", title)
    means = summary.scenes.means
    filled = {"without filling": means["without"]["completeness"], "with filling": means["aligned"]["completeness"]}
    _draw_rows(cloud, filled, "completeness (share)", f"{summary.scenes.count} scenes: fused cloud")
    others = {name: figures["psnr_unseen"] for name, figures in means.items()}
    _draw_rows(unseen, others, "PSNR of unseen pixels, dB", "scenes: held-out cameras")
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _draw_rows(axes: Axes, estimates: Mapping[str, Interval | None], label: str, title: str) -> None:
    known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
    for row, (name, e) in enumerate(known.items()):
        axes.plot(
            np.array([e.low, e.value, e.high], dtype=float),
            [row] * 3,
            "o-",
            color=COLOURS.get(name, GOLD),
            markevery=[1],
        )
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
