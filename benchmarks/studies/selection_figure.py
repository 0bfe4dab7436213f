"""Figure of the study of selection: held-out error against the number of annotations."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.studies.selection_records import SelectionSummary
from rlhf.reports.charts import GREY, REWARD
from rlhf.storage.atomic_files import atomic_write

COLOURS = {"uncertain": REWARD, "random": GREY}
LINES = {"refit": "-", "update": "--"}


def draw_errors(summary: SelectionSummary, path: Path) -> None:
    """Draws a PNG: mean squared errors of both selections, and their paired difference with its 95 % interval.

    Errors are taken against noiseless scores if annotators are simulated, otherwise against the annotators' scores.
    """
    is_simulated = summary.curves["refit random"][0].squared_error_noiseless is not None
    name = "squared_error_noiseless" if is_simulated else "squared_error"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    errors, differences = figure.subplots(1, 2)
    for label, curve in summary.curves.items():
        learning, selection = label.split(" ", 1)
        style = {"linestyle": LINES[learning], "color": COLOURS[selection]}
        values = [getattr(point, name).value for point in curve]
        errors.plot([point.annotations for point in curve], values, ".", **style, label=label)
    errors.legend(fontsize=7, frameon=False)
    for number, (label, points) in enumerate(summary.differences.items()):
        learning, selection = label.split(" ", 1)
        # Bars of equal numbers are set apart, so that they do not overlap.
        x = [(0.95 + 0.02 * number) * point.annotations for point in points]
        estimates = [getattr(point, name) for point in points]
        style = {"linestyle": LINES[learning], "color": COLOURS[selection]}
        differences.vlines(x, [e.low for e in estimates], [e.high for e in estimates], **style)
        differences.plot(x, [e.value for e in estimates], "o", color=COLOURS[selection], label=label)
    differences.axhline(0, color=GREY, linewidth=1)
    judged = "noiseless scores (simulated)" if is_simulated else "annotators' scores"
    errors.set(xlabel="annotations", ylabel="mean squared error", title=f"held-out error, {judged}")
    title = "difference from random; below 0: active choice pays"
    differences.set(xlabel="annotations", ylabel="difference", title=title)
    for axes in (errors, differences):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
