"""Metrics of a run: one JSON line per update, and TensorBoard events."""

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to `metrics.jsonl` and to `tensorboard/`; lines from `first_update` on are dropped first."""

    def __init__(self, out: Path, *, first_update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = out / "metrics.jsonl"
        kept = [line for line in read_metrics(out) if line["update"] <= first_update]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self._path)
        self._events = SummaryWriter(str(out / "tensorboard"), purge_step=first_update + 1)

    def write(self, metrics: dict[str, Any]) -> None:
        """Add one update's figures; on disk when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in metrics.items():
            self._events.add_scalar(name, value, metrics["update"])
        self._events.flush()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """All complete lines of `metrics.jsonl`; a line cut off by a crash is left out."""
    path = out / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
