"""Stages in a row, each as the command a user would type: what is done is not done twice, what has changed is."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, read_json

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process is sent when its parent dies."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command, and what it rests on besides."""

    name: str
    arguments: list[str]
    """Of `rlhf`."""
    settings: dict[str, Any]
    """Resolved settings that it reads; a change there outdates it and all that follow."""
    run: Path | None = None
    """Folder of an alignment, which `--resume` continues and nothing overwrites."""
    renewal: tuple[str, ...] = ()
    """Further arguments, by which it replaces what it made of other settings."""


def run_stages(out: Path, stages: Sequence[Stage], *, program: str, later_runs: Sequence[Path] = ()) -> None:
    """Run or finish stages; those whose command and settings have not changed are not run twice.

    `later_runs` are folders of alignments that rest on these stages and come after them. Raises
    UserError where a stage has changed on which a begun alignment rests, SystemExit with its code
    where one fails.
    """
    for number, stage in enumerate(stages):
        runs = [s.run for s in stages[number:] if s.run is not None]
        _run_stage(out, stage, [*runs, *later_runs], program)


def read_stages(out: Path) -> dict[str, dict]:
    """Finished stages by name: command and seconds."""
    path = out / "stages.json"
    return read_json(path, "remove it, and all stages run again") if path.is_file() else {}


def _run_stage(out: Path, stage: Stage, resting: list[Path], program: str) -> None:
    stages = read_stages(out)
    command = shlex.join(["rlhf", *stage.arguments])
    before = stages.get(stage.name, {})
    if (before.get("command"), before.get("settings")) == (command, stage.settings):
        print(f"{program}: {stage.name}: done before", file=sys.stderr)
        return
    begun = [run for run in resting if _is_begun(run)]
    if before and begun:
        raise UserError(
            f"{out}: {stage.name} has changed, but {begun[0].relative_to(out)}/ rests on it; "
            f"remove {' and '.join(map(str, begun))} or choose another --out"
        )
    resumes = stage.run is not None and _is_begun(stage.run)
    started = time.perf_counter()
    print(f"{program}: {command}", file=sys.stderr)
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    words = [sys.executable, "-m", "rlhf", *stage.arguments, *stage.renewal, *(["--resume"] if resumes else [])]
    code = run_command(words, environment)
    if code != 0:
        print(f"{program}: stage {stage.name} failed; mend it and run the same command again to go on", file=sys.stderr)
        raise SystemExit(code)
    # A stage that was run anew outdates all that came after it.
    names = list(stages)
    kept = {n: stages[n] for n in names[: names.index(stage.name)]} if stage.name in stages else stages
    kept[stage.name] = {
        "command": command,
        "settings": stage.settings,
        "duration_s": round(time.perf_counter() - started, 1),
    }
    atomic_write_json(out / "stages.json", kept)


def run_command(words: Sequence[str], environment: dict[str, str]) -> int:
    """Run a program to its end; returns its code.

    It dies with this process, however that dies: else it would go on unseen, and whoever runs the same stages again
    would write into the same folders beside it.
    """
    libc = ctypes.CDLL(None)
    return subprocess.run(
        words, env=environment, check=False, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    ).returncode


def _is_begun(run: Path) -> bool:
    return (run / "learner").exists()
