"""The figure of `rlhf study selection`: held-out error against the number of annotations."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rlhf.charts import GREY, REWARD
from rlhf.storage import atomic_write

COLOURS = {"uncertain": REWARD, "random": GREY}
LINES = {"refit": "-", "update": "--"}


def draw_errors(summary: dict[str, Any], path: Path) -> None:
    """A PNG: mean squared errors of both selections, and their paired difference with its 95 % interval.

    Against the noiseless scores, where annotators are simulated; else against the annotators' own.
    """
    is_simulated = "squared_error_noiseless" in summary["curves"]["refit random"][0]
    name = "squared_error_noiseless" if is_simulated else "squared_error"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    errors, differences = figure.subplots(1, 2)
    for label, curve in summary["curves"].items():
        learning, selection = label.split()
        x = [point["annotations"] for point in curve]
        values = [point[name]["value"] for point in curve]
        errors.plot(
            x, values, ".", linestyle=LINES[learning], color=COLOURS[selection], label=f"{selection}, {learning}"
        )
    errors.legend(fontsize=8, frameon=False)
    for offset, (learning, points) in zip((0.99, 1.01), summary["differences"].items(), strict=True):
        # Set apart, so that bars of equal numbers do not lie on each other.
        x = [offset * point["annotations"] for point in points]
        estimates = [point[name] for point in points]
        differences.vlines(x, [e["low"] for e in estimates], [e["high"] for e in estimates], color=REWARD)
        values = [e["value"] for e in estimates]
        differences.plot(x, values, "o", linestyle=LINES[learning], color=REWARD, label=learning)
    differences.axhline(0, color=GREY, linewidth=1)
    differences.legend(fontsize=8, frameon=False)
    judged = "noiseless scores (simulated)" if is_simulated else "annotators' scores"
    errors.set(xlabel="annotations", ylabel="mean squared error", title=f"held-out error, {judged}")
    title = "uncertain less random; below 0: active choice pays"
    differences.set(xlabel="annotations", ylabel="difference", title=title)
    for axes in (errors, differences):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
