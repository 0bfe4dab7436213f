"""Results of judged extensions: curves by step, a sheet of pictures, and the table for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps

from rlhf.evaluation.tasks.extension_measures import STEP_MEASURES, ContestantSteps
from rlhf.evaluation.tasks.extension_summary import ExtensionSummary
from rlhf.reports.charts import GOLD, GREY, REWARD
from rlhf.reports.intervals import show_estimate
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.images import decode_image, encode_png

COLOURS = (GREY, REWARD, GOLD, "#4aa564", "#b05fc4")
"""Colours of the contestants, in their order."""
CELL_PX = (240, 170)
"""Width and height of a picture in the sheet."""
LABEL_PX = 16
COLUMNS = 4


def draw_steps(summary: ExtensionSummary, path: Path) -> None:
    """Draws every measure against the step as a PNG, with 95 % intervals over photographs."""
    rows = -(-len(STEP_MEASURES) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for place, (name, measure) in enumerate(STEP_MEASURES.items()):
        _draw_measure(axes[place], summary.measures[name])
        axes[place].set_title(measure.label, fontsize=8)
        axes[place].spines[["top", "right"]].set_visible(False)
    for unused in axes[len(STEP_MEASURES) :]:
        unused.set_axis_off()
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False)
    title = f"{summary.photographs} photographs, strips extended {summary.growth:g} times; 95 % intervals"
    figure.suptitle(title, fontsize=9)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))


def _draw_measure(axes: Axes, contestants: Mapping[str, ContestantSteps]) -> None:
    for number, (name, figures) in enumerate(contestants.items()):
        # Contestants are set apart, so that their intervals do not overlap.
        points = [(step + 0.06 * (number - len(contestants) / 2), e) for step, e in enumerate(figures.steps, 1) if e]
        colour = COLOURS[number % len(COLOURS)]
        x, values = [x for x, _ in points], [e.value for _, e in points]
        axes.plot(x, values, "o-", color=colour, label=name, linewidth=1.4, markersize=3)
        axes.vlines(x, [e.low for _, e in points], [e.high for _, e in points], color=colour, linewidth=1)
    axes.set_xticks(range(1, 1 + len(next(iter(contestants.values())).steps)))
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=7)


def save_sheet(folders: Sequence[Path], names: Sequence[str], path: Path) -> None:
    """Writes a PNG with a row per folder of its pictures `NAME.png`, under their names."""
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


def format_table(summary: ExtensionSummary) -> str:
    """Formats, for every measure and contestant, the steps, the drift, and the first and last difference."""
    heads = [f"step {step}" for step in range(1, summary.steps_per_side + 1)]
    heads += ["last step less first", *(f"{end} step less {summary.reference}" for end in ("first", "last"))]
    lines = []
    for name, contestants in summary.measures.items():
        rows = {}
        for contestant, own in contestants.items():
            differences = summary.differences[name].get(contestant)
            ends = [None, None] if differences is None else [differences.steps[0], differences.steps[-1]]
            values = ["-" if step is None else f"{step.value:.3f}" for step in own.steps]
            rows[contestant] = [*values, *(show_estimate(estimate, "+.3f") for estimate in (own.drift, *ends))]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=heads)
        lines += [STEP_MEASURES[name].label, table.to_string()]
        gone = [f"{contestant} {own.left_out}" for contestant, own in contestants.items() if own.left_out]
        lines += [f"left out, bands for which it cannot be computed: {', '.join(gone)}"] if gone else []
    lines.append(
        f"{summary.photographs} photographs ({summary.skipped} skipped, see skipped.json); known pixels that differ: "
        f"{summary.known_pixels_differ}; 95 % intervals over photographs"
    )
    return "\n".join(lines)
