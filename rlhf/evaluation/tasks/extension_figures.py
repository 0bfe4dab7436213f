"""Curves by step, a sheet of pictures, and the table of the terminal for judged extensions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps

from rlhf.evaluation.tasks.extension_measures import MEASURES
from rlhf.reports.charts import GOLD, GREY, REWARD
from rlhf.reports.intervals import show_estimate
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.images import decode_image, encode_png

COLOURS = (GREY, REWARD, GOLD, "#4aa564", "#b05fc4")
"""Of the contestants, in their order."""
CELL_PX = (240, 170)
"""Width and height of a picture in the sheet."""
LABEL_PX = 16
COLUMNS = 4
ENDS = {"first step": 0, "last step": -1}
"""Steps whose differences are shown in the terminal; all are in the JSON."""


def draw_steps(summary: Mapping[str, Any], path: Path) -> None:
    """A PNG: every measure against the step, with 95 % intervals over photographs."""
    rows = -(-len(MEASURES) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for place, (name, measure) in enumerate(MEASURES.items()):
        _draw_measure(axes[place], summary["measures"][name])
        axes[place].set_title(measure.label, fontsize=8)
        axes[place].spines[["top", "right"]].set_visible(False)
    for unused in axes[len(MEASURES) :]:
        unused.set_axis_off()
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False)
    title = f"{summary['photographs']} photographs, strips extended {summary['growth']:g} times; 95 % intervals"
    figure.suptitle(title, fontsize=9)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _draw_measure(axes: Axes, contestants: Mapping[str, Any]) -> None:
    for number, (name, figures) in enumerate(contestants.items()):
        # Set apart, so that intervals do not lie on each other.
        points = [(step + 0.06 * (number - len(contestants) / 2), e) for step, e in enumerate(figures["steps"], 1) if e]
        colour = COLOURS[number % len(COLOURS)]
        x, values = [x for x, _ in points], [e["value"] for _, e in points]
        axes.plot(x, values, "o-", color=colour, label=name, linewidth=1.4, markersize=3)
        axes.vlines(x, [e["low"] for _, e in points], [e["high"] for _, e in points], color=colour, linewidth=1)
    axes.set_xticks(range(1, 1 + len(next(iter(contestants.values()))["steps"])))
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)


def save_sheet(folders: Sequence[Path], names: Sequence[str], path: Path) -> None:
    """A PNG of the pictures `NAME.png` of every folder, a row each, under their names."""
    width, height = CELL_PX
    sheet = Image.new("RGB", (len(names) * (width + 4), LABEL_PX + len(folders) * (height + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((column * (width + 4) + 4, 2), name, fill="black")
        for row, folder in enumerate(folders):
            picture = decode_image((folder / f"{name}.png").read_bytes(), name=name)
            fitted = ImageOps.pad(picture, CELL_PX, Image.Resampling.LANCZOS, color="white")
            sheet.paste(fitted, (column * (width + 4), LABEL_PX + row * (height + 4)))
    data = encode_png(sheet)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def format_table(summary: Mapping[str, Any]) -> str:
    """The summary for the terminal: by measure and contestant the steps, the drift, first and last difference."""
    steps, reference = range(1, summary["steps_per_side"] + 1), summary["reference"]
    heads = "".join(f"{f'step {step}':>9}" for step in steps)
    heads += "".join(f"  {head:<25}" for head in ("last step less first", *(f"{n} less {reference}" for n in ENDS)))
    lines = []
    for name, contestants in summary["measures"].items():
        lines += [MEASURES[name].label, f"  {'':<10}{heads}".rstrip()]
        for contestant, figures in contestants.items():
            values = "".join(f"{_show(e):>9}" for e in figures["steps"])
            differences = summary["differences"][name].get(contestant, {"steps": []})["steps"]
            shown = [figures["drift"], *(differences[place] for place in ENDS.values() if differences)]
            values += "".join(f"  {show_estimate(e, '+.3f'):<25}" for e in shown)
            lines.append(f"  {contestant:<10}{values}".rstrip())
            if figures["left_out"]:
                lines.append(f"  {'':<10}left out: {figures['left_out']} bands for which it cannot be computed")
    lines.append(
        f"{summary['photographs']} photographs ({summary['skipped']} skipped, see skipped.json); known pixels that "
        f"differ: {summary['known_pixels_differ']}; 95 % intervals over photographs; the gold judge is simulated"
    )
    return "\n".join(lines)


def _show(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.3f}"
