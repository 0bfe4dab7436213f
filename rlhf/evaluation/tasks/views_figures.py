"""What `python -m benchmarks.studies.views` found: a table for the terminal, CSV, and a figure."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.reports.charts import GOLD, GREY, REWARD
from rlhf.reports.intervals import show_estimate
from rlhf.storage.atomic_files import atomic_write, atomic_write_text, finite

COLOURS = {"base": GREY, "aligned": REWARD}
Row = tuple[str, str, str, str, dict[str, Any] | None]
"""Of the long table: test, part, filler or pair, figure, estimate."""


def list_figures(summary: dict[str, Any]) -> Iterator[Row]:
    """All figures of a summary, one by one."""
    for shrink, parts in summary["motorcycle"].items():
        for part, found in parts.items():
            for name, figures in (found["fillers"] | {"aligned over base": found["aligned_over_base"]}).items():
                yield _pair_name(shrink), part, name, "psnr_db", figures
                yield _pair_name(shrink), part, name, "ssim", figures["ssim"]
    scenes = summary["scenes"]
    for name, figures in (scenes["means"] | scenes["differences"]).items():
        for figure, estimate in figures.items():
            yield "scenes", "cloud", name, figure, estimate


def _pair_name(shrink: str) -> str:
    return "motorcycle" if shrink == "1" else f"motorcycle, 1/{shrink} of its size"


def write_csv(summary: dict[str, Any], path: Path) -> None:
    """The long table; empty where something could not be measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["test", "part", "filler", "figure", "value", "low", "high"])
    for *names, estimate in list_figures(summary):
        known = finite(estimate or {})
        writer.writerow([*names, *(known.get(key) for key in ("value", "low", "high"))])
    atomic_write_text(path, buffer.getvalue())


def format_table(summary: dict[str, Any]) -> str:
    """The summary for the terminal."""
    lines = []
    for shrink, parts in summary["motorcycle"].items():
        lines.append(f"{_pair_name(shrink)}: the true right view against the filled one, {summary['seeds']} seed(s)")
        for part in ("hole", "behind", "outside"):
            if part in parts:
                lines += _describe_part(part, parts[part])
        seen = parts["seen"]["fillers"]["base"]
        scale = f"{_show(seen, '.2f', ' dB')}, SSIM {_show(seen['ssim'], '.3f')}"
        lines.append(f"  for scale, what was warped and not filled: {scale}")
    scenes = summary["scenes"]
    lines.append(f"{scenes['count']} synthetic scenes: cloud fused from one known and four filled views")
    renderings = (("held-out", "psnr"), ("unseen", "psnr_unseen"))
    for name, figures in scenes["means"].items():
        shown = [f"{figure} {_show(figures[figure], '.3f')}" for figure in ("completeness", "accuracy")]
        shown += [f"{label} {_show(figures[key], '.2f', ' dB')}" for label, key in renderings]
        lines.append(f"  {name:20} " + ", ".join(shown))
    for name, figures in scenes["differences"].items():
        shown = [f"completeness {_show(figures['completeness'], '+.3f')}"]
        shown += [f"{label} {_show(figures[key], '+.2f', ' dB')}" for label, key in renderings]
        lines.append(f"  {name:30} " + ", ".join(shown))
    lines.append("95 % intervals: of the motorcycle over regions of one scene; of the scenes over scenes")
    return "\n".join([*lines, *summary["notes"]])


def _describe_part(part: str, found: dict[str, Any]) -> list[str]:
    lines = [f"  {part} ({found['pixels']} pixels)"]
    for name, figures in found["fillers"].items():
        lines.append(f"    {name:20} PSNR {_show(figures, '.2f', ' dB')}, SSIM {_show(figures['ssim'], '.3f')}")
    gain = found["aligned_over_base"]
    lines.append(f"    {'aligned over base':20} PSNR {_show(gain, '+.2f', ' dB')}, SSIM {_show(gain['ssim'], '+.4f')}")
    return lines


def _show(estimate: dict[str, Any] | None, form: str, unit: str = "") -> str:
    return "not measured" if estimate is None else show_estimate(estimate, form) + unit


def draw_figure(summary: dict[str, Any], path: Path) -> None:
    """A PNG: PSNR in the motorcycle's hole, completeness of the cloud, and PSNR of what only filling shows."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    hole, cloud, unseen = figure.subplots(1, 3)
    shrink, parts = next(iter(summary["motorcycle"].items()))
    title = f"{_pair_name(shrink)}; intervals over regions of one scene"
    _draw_rows(hole, parts["hole"]["fillers"], "PSNR inside the hole, dB", title)
    means = summary["scenes"]["means"]
    filled = {"without filling": means["without"]["completeness"], "with filling": means["aligned"]["completeness"]}
    _draw_rows(cloud, filled, "completeness (share)", f"{summary['scenes']['count']} scenes: fused cloud")
    others = {name: figures["psnr_unseen"] for name, figures in means.items() if figures["psnr_unseen"]}
    _draw_rows(unseen, others, "PSNR of unseen pixels, dB", "scenes: held-out cameras")
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _draw_rows(axes: Axes, estimates: dict[str, dict[str, Any]], label: str, title: str) -> None:
    for row, (name, e) in enumerate(estimates.items()):
        axes.plot([e["low"], e["value"], e["high"]], [row] * 3, "o-", color=COLOURS.get(name, GOLD), markevery=[1])
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
