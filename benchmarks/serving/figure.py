"""Draws the figure of `benchmarks.serving`."""

from pathlib import Path
from typing import Any


def plot(figures: dict[str, Any], file: Path) -> None:
    """Draws throughput and latency by number of clients."""
    import matplotlib.pyplot as plt

    rows = figures["throughput"]["rows"]
    clients = [row["clients"] for row in rows]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    labels = {"ours": "rlhf serve", "usual": "diffusers pipeline behind Ray Serve"}
    for name, label in labels.items():
        left.plot(clients, [row[name]["images_per_s"] for row in rows], marker="o", label=label)
        (line,) = right.plot(
            clients, [row[name]["latency_p50_s"] for row in rows], marker="o", label=f"{label}, median"
        )
        right.plot(clients, [row[name]["latency_p99_s"] for row in rows], ls=":", color=line.get_color(), label="99 %")
    left.plot(clients, [row["bare_images_per_s"] for row in rows], color="grey", ls="--", label="pipeline in a loop")
    left.set(xscale="log", xticks=clients, xticklabels=clients, xlabel="clients at once", ylabel="images/s", ylim=0)
    right.set(
        xscale="log", yscale="log", xticks=clients, xticklabels=clients, xlabel="clients at once", ylabel="latency, s"
    )
    for axes in (left, right):
        axes.legend(fontsize=7, frameon=False)
        axes.minorticks_off()
    fig.savefig(file, dpi=130)
