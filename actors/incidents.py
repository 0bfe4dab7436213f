"""Incidents: the faults of a run that were repaired, one line each in `incidents.jsonl`."""

import json
import time
from collections import Counter
from pathlib import Path

from rlhf.storage.atomic_files import append_text, atomic_write_text

WAITING = "waiting"
"""Cause of an incident that is no restart yet: a replacement was started and has not answered."""


class Incidents:
    """Appends to `incidents.jsonl` in a run folder; a restarted learner reads the earlier lines."""

    def __init__(self, out: Path | None) -> None:
        self._path = None if out is None else out / "incidents.jsonl"
        self._counts = Counter(f"{line['role']}/{line['cause']}" for line in read_incidents(out))

    def add(self, role: str, cause: str, detail: str = "") -> None:
        """Notes that a worker of a role was lost by a cause, or is waited for; the detail is for people."""
        self._counts[f"{role}/{cause}"] += 1
        if self._path is not None:
            line = {"at": round(time.time(), 3), "role": role, "cause": cause, "detail": detail[:500]}
            append_text(self._path, json.dumps(line) + "\n")

    def note_start(self, run_id: str, detail: str) -> None:
        """Notes the start of a learner: an incident if one of the same driver had started before."""
        if self._path is None:
            return
        marker = self._path.with_name("driver.txt")
        if marker.is_file() and marker.read_text() == run_id:
            self.add("learner", "restarted", detail)
        atomic_write_text(marker, run_id)

    def metrics(self) -> dict[str, float]:
        """Returns the number of restarts since the run began: in all, and by role and cause if there were any."""
        lost = {name: count for name, count in self._counts.items() if not name.endswith(WAITING)}
        return {"restarts": float(sum(lost.values()))} | {f"restarts/{name}": float(n) for name, n in lost.items()}


def read_incidents(out: Path | None) -> list[dict]:
    """Returns all complete lines of `incidents.jsonl`."""
    path = None if out is None else out / "incidents.jsonl"
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
