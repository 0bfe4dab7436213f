"""Runs the suite of benchmarks: `python -m benchmarks --run RUN --out DIR [--only PART ...]`, or `make bench`.

RUN is a finished `rlhf demo`; the suite uses its prompts and reward. Each part writes its figures to DIR/results.json
as soon as it is done, with date and commit, and is skipped if they are there. DIR/results.png is drawn from the file.
Nothing else should run on the machine. Benchmarks that need hours, a server or a GPU are separate commands:
`python -m benchmarks.time_to_quality`, `.scaling`, `.serving` and `.gpu`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, describe_machine, show
from benchmarks.suite import prompt_reading, rollout, scoring, switches, update, weight_sync, whole_step
from benchmarks.suite.figure import draw_figure
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json

PARTS: Mapping[str, Callable[[Path], Figures]] = {
    "rollout": lambda run: rollout.measure(25),
    "update": lambda run: update.measure(9),
    "switches": lambda run: switches.measure(9),
    "scoring": lambda run: scoring.measure(run, 15),
    "prompts": lambda run: prompt_reading.measure(run, 9),
    "weight_sync": lambda run: weight_sync.measure(15),
    "whole_step": lambda run: whole_step.measure(run, 15),
}


def flatten(figures: Mapping[str, Any], name: str = "") -> list[tuple[str, str]]:
    """Returns the rows of the table: medians with quartiles, and single numbers."""
    if {"median", "low", "high"} <= figures.keys():
        return [(name, show(figures, ".3g"))]
    rows = []
    for key, value in figures.items():
        title = f"{name}: {key}" if name else key
        if isinstance(value, Mapping):
            rows += flatten(value, title)
        else:
            rows.append((title, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def find_commit() -> str:
    """Returns the commit of the checkout, with a + if it has changes."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return "unknown"
    return found.stdout.strip() or "unknown"


def main() -> None:
    """Measures the missing parts, and prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished `rlhf demo`")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    given = parser.parse_args()
    if not (given.run / "reward" / "reward.json").is_file():
        sys.exit(f"{given.run}: no reward/ there; run `rlhf demo --out {given.run}` first")
    file, commit = given.out / "results.json", find_commit()
    results: Figures = json.loads(file.read_text()) if file.is_file() else {"machine": describe_machine()}
    for part in progress_bar([part for part in given.only if part not in results], stage="benchmarks"):
        results[part] = PARTS[part](given.run)
        results.setdefault("measured", {})[part] = f"{date.today()}, commit {commit}"
        atomic_write_json(file, results)
    print(format_results(results))
    draw_figure(results, given.out / "results.png")


def format_results(results: Figures) -> str:
    """Formats a line per figure, and a table of the switches."""
    rows = flatten({part: figures for part, figures in results.items() if part != "switches"})
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {figure}" for name, figure in rows]
    return "\n".join([*lines, *(["", switches.format_table(results["switches"])] if "switches" in results else [])])


if __name__ == "__main__":
    main()
