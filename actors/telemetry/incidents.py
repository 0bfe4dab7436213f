"""Incidents: the faults of a run that were repaired, one line each in `incidents.jsonl`."""

import json
import time
from collections import Counter
from pathlib import Path

from rlhf.storage.atomic_files import append_text, atomic_write_text, read_json_lines

WAITING = "waiting"
"""Cause of an incident that is no restart yet: a replacement was started and has not answered."""


class Incidents:
    """Appends to `incidents.jsonl` in a run folder; a restarted learner reads the earlier lines."""

    def __init__(self, out: Path | None) -> None:
        self._path = None if out is None else out / "incidents.jsonl"
        known = read_incidents(out)
        if self._path is not None and self._path.is_file() and not self._path.read_bytes().endswith(b"\n"):
            # A line that a crash cut off would spoil the next one.
            atomic_write_text(self._path, "".join(json.dumps(line) + "\n" for line in known))
        self._counts = Counter(f"{line['role']}/{line['cause']}" for line in known)

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
        if marker.is_file() and marker.read_bytes() == run_id.encode():
            self.add("learner", "restarted", detail)
        atomic_write_text(marker, run_id)

    def metrics(self) -> dict[str, float]:
        """Returns the number of restarts since the run began: in all, and by role and cause if there were any."""
        lost = {name: count for name, count in self._counts.items() if not name.endswith(WAITING)}
        return {"restarts": float(sum(lost.values()))} | {f"restarts/{name}": float(n) for name, n in lost.items()}


def read_incidents(out: Path | None) -> list[dict]:
    """Returns all complete lines of `incidents.jsonl`. Raises UserError with the line if one is damaged."""
    if out is None:
        return []
    needed = {"role": str, "cause": str, "detail": str}
    return read_json_lines(out / "incidents.jsonl", needed, "restore the file, or remove the line")
