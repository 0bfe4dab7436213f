"""Metrics of a run: one JSON line per update, and TensorBoard events."""

import json
import tempfile
from pathlib import Path

from rlhf.storage.atomic_files import append_text, atomic_write_text, read_json_lines, writing
from rlhf.storage.url_path import UrlPath

Metrics = dict[str, float]
"""Figures of one update by name, with its number as `update`: a line of `metrics.jsonl`."""


class MetricsLog:
    """Appends updates to `metrics.jsonl` and `tensorboard/`.

    Lines after `first_update` are dropped first. A URL cannot be appended to, so both are stored whole with every
    update there.
    """

    def __init__(self, out: Path, *, first_update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._out, self._path = out, out / "metrics.jsonl"
        kept = [line for line in read_metrics(out) if line["update"] <= first_update]
        atomic_write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._temporary = tempfile.TemporaryDirectory(prefix="rlhf-") if isinstance(out, UrlPath) else None
        self._folder = out / "tensorboard" if self._temporary is None else Path(self._temporary.name)
        self._events = SummaryWriter(str(self._folder), purge_step=first_update + 1)

    def write(self, metrics: Metrics) -> None:
        """Appends the figures of one update, stored when this returns. Raises UserError if no room is left."""
        append_text(self._path, json.dumps(metrics) + "\n")
        with writing(self._out):
            for name, value in metrics.items():
                self._events.add_scalar(name, value, metrics["update"])
            self._events.flush()
            if isinstance(self._out, UrlPath):
                for events in self._folder.iterdir():
                    (self._out / "tensorboard" / events.name).put(events)


def read_metrics(out: Path) -> list[Metrics]:
    """Returns the complete lines of `metrics.jsonl`; a line cut off by a crash is ignored.

    Raises UserError with the line if another one is damaged.
    """
    remedy = "restore the file, or remove the line, whose figures are then lost"
    return read_json_lines(out / "metrics.jsonl", {"update": int}, remedy)
