"""Measures all that one GPU can show within 8 minutes: `python -m benchmarks.gpu.session --out DIR [--rehearse]`.

The parts run one after another, the most valuable first, each a process of its own with a time limit. DIR/session.json
holds the outcome of each as soon as it is done; figures of rollout and training are in DIR/gpu.json, too. A part that
fails or takes too long does not stop the others. With --rehearse tiny models run, also on a CPU, where figures mean
nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from benchmarks.measure import Figures
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text
from rlhf.workflows.stages import die_with_parent

WHOLE_S = 470.0
"""Time after which nothing runs any more, in seconds; 10 are left to end processes."""


@dataclass(frozen=True, kw_only=True)
class SessionPart:
    """Commands that run one after another."""

    name: str
    commands: Sequence[Sequence[str]]
    """Arguments of python."""
    limit_s: float
    result: Path | None = None
    """JSON file that the last command writes, copied into the session's."""


def list_parts(out: Path, *, is_rehearsal: bool) -> list[SessionPart]:
    """Returns the parts in the order of their value."""
    size = "tiny" if is_rehearsal else "full"

    def measured(name: str, limit_s: float) -> SessionPart:
        # With no time for more, the part's base alone is measured.
        words = ["-m", "benchmarks.gpu", "--out", str(out), "--only", name, "--size", size, "--limit-s", "0"]
        return SessionPart(name=name, commands=[words], limit_s=limit_s, result=out / "gpu.json")

    def ratio(precision: str) -> SessionPart:
        file = out / f"ratio_{precision}.json"
        words = ["-m", "benchmarks.gpu.ratio", "--precision", precision, "--size", size, "--out", str(file)]
        return SessionPart(name=f"ratio before the update, {precision}", commands=[words], limit_s=60, result=file)

    return [
        measured("sd_training", 100),
        ratio("bf16"),
        ratio("fp32"),
        measured("sd_rollout", 60),
        SessionPart(name="colocated step", commands=colocated_step(out, size), limit_s=150),
        measured("xl_training", 100),
        measured("xl_rollout", 60),
    ]


def colocated_step(out: Path, size: str) -> list[list[str]]:
    """Returns the commands of two updates whose roles take turns on the device, with a reward without weights."""
    run, folder = out / "colocated.yaml", out / "colocated"
    photographs = ["--images", str(folder / "photographs"), "--split", "train", "--out", str(folder / "prompts")]
    align = ["align", "--prompts", str(folder / "prompts"), "--out", str(folder / "align"), "--profile-update", "2"]
    config = ["--config", str(run)]
    making = ["-m", "benchmarks.full_size", "--out", str(folder), "--model", size, "--make"]
    return [making, ["-m", "rlhf", "prompts", *photographs, *config], ["-m", "rlhf", *align, *config]]


def colocated_settings(out: Path, px: int) -> Figures:
    """Returns the run file of `colocated_step`."""
    samples = {"prompts_per_update": 2, "samples_per_prompt": 8, "micro_batch_size": 8}
    return {
        "model": {"path": str(out / "colocated" / "pipeline")},
        "prompts": {"size_px": px, "crops_per_photograph": 1},
        "rewards": [{"kind": "seam"}],
        "align": {"updates": 2, "checkpoint_every": 2, **samples},
        "cluster": {"samplers": 1, "scorers": 1, "colocate": True},
    }


def run_part(part: SessionPart, log: Path, limit_s: float) -> Figures:
    """Runs the commands of a part within `limit_s` seconds; returns how it ended."""
    started, until = time.perf_counter(), time.monotonic() + limit_s
    with log.open("w") as file:
        for words in part.commands:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            try:
                code = process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = None
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code != 0:
                break
    ended = "took too long" if code is None else "done" if code == 0 else f"exit code {code}"
    figures: Figures = {"ended": ended, "s": round(time.perf_counter() - started, 1), "log": log.name}
    if code == 0 and part.result is not None:
        figures["result"] = json.loads(part.result.read_text())
    if code != 0:
        figures["last_words"] = log.read_text()[-1000:]
    return figures


def run_session(parts: Sequence[SessionPart], out: Path, whole_s: float) -> Figures:
    """Runs all parts for which time is left; returns, and writes after each, how they ended."""
    until, ends = time.monotonic() + whole_s, {}
    for number, part in enumerate(parts):
        left_s = until - time.monotonic()
        if left_s <= 0:
            ends[part.name] = {"ended": "not begun: no time was left"}
        else:
            ends[part.name] = run_part(part, out / f"part-{number}.log", min(part.limit_s, left_s))
        atomic_write_json(out / "session.json", ends)
        print(f"{part.name}: {ends[part.name]['ended']}", flush=True)
    return ends


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; exit code 1 if a part of a rehearsal failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="tiny models, without time limits")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = colocated_settings(out, 64 if given.rehearse else 512)
    atomic_write_text(out / "colocated.yaml", yaml.safe_dump(settings, sort_keys=False))
    parts = list_parts(out, is_rehearsal=given.rehearse)
    if given.rehearse:
        parts = [replace(part, limit_s=3600.0) for part in parts]
    ends = run_session(parts, out, 3600.0 if given.rehearse else WHOLE_S)
    if given.rehearse and any(end["ended"] != "done" for end in ends.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
