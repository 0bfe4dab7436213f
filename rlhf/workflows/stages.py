"""Runs stages in order, each as the command that a user would type. A stage runs again only if it has changed."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from rlhf.alignment.run_folder import is_begun
from rlhf.errors import UserError
from rlhf.reports.records import read_record
from rlhf.storage.atomic_files import atomic_write_json

Settings = dict[str, JsonValue]
"""Resolved configuration by section, compared as a whole with that of an earlier run."""
PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl that sets the signal a process gets when its parent dies."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Command of a workflow, with the settings that it depends on."""

    name: str
    arguments: list[str]
    """Arguments of `rlhf`."""
    settings: Settings
    """Resolved settings by section; a change outdates this stage and all later ones."""
    run: Path | None = None
    """Folder of an alignment, which `--resume` continues and nothing overwrites."""
    renewal: tuple[str, ...] = ()
    """Further arguments that replace earlier results made with other settings."""


def run_stages(out: Path, stages: Sequence[Stage], *, program: str, later_runs: Sequence[Path] = ()) -> None:
    """Runs the stages in order; finished ones whose command and settings have not changed are skipped.

    `later_runs` are folders of later alignments that depend on these stages. Raises UserError if a stage has changed
    on which a started alignment depends, and SystemExit with the exit code of a stage that fails.
    """
    for number, stage in enumerate(stages):
        runs = [s.run for s in stages[number:] if s.run is not None]
        _run_stage(out, stage, [*runs, *later_runs], program)


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """Finished stage, as `stages.json` holds it."""

    command: str | None = None
    settings: Settings | None = None
    duration_s: float = 0.0


def read_stages(out: Path) -> dict[str, FinishedStage]:
    """Returns the finished stages by name, in the order in which they ran."""
    path = out / "stages.json"
    return read_record(dict[str, FinishedStage], path, "remove it, and all stages run again") if path.is_file() else {}


def _run_stage(out: Path, stage: Stage, resting: list[Path], program: str) -> None:
    stages = read_stages(out)
    command = shlex.join(["rlhf", *stage.arguments])
    before = stages.get(stage.name)
    if before is not None and (before.command, before.settings) == (command, stage.settings):
        print(f"{program}: {stage.name}: done before", file=sys.stderr)
        return
    begun = [run for run in resting if is_begun(run)]
    if before and begun:
        raise UserError(
            f"{out}: {stage.name} has changed, but {begun[0].relative_to(out)}/ depends on it; "
            f"remove {' and '.join(map(str, begun))} or choose another --out"
        )
    resumes = stage.run is not None and is_begun(stage.run)
    started = time.perf_counter()
    print(f"{program}: {command}", file=sys.stderr)
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    words = [sys.executable, "-m", "rlhf", *stage.arguments, *stage.renewal, *(["--resume"] if resumes else [])]
    code = run_command(words, environment)
    if code != 0:
        print(f"{program}: stage {stage.name} failed; fix it, then run the same command again", file=sys.stderr)
        raise SystemExit(code)
    # A stage that ran again outdates all later ones.
    names = list(stages)
    kept = {n: stages[n] for n in names[: names.index(stage.name)]} if stage.name in stages else stages
    duration_s = round(time.perf_counter() - started, 1)
    kept[stage.name] = FinishedStage(command=command, settings=stage.settings, duration_s=duration_s)
    atomic_write_json(out / "stages.json", {name: asdict(done) for name, done in kept.items()})


_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Called in a process before it becomes a program: the kernel then kills it when its parent ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_command(words: Sequence[str], environment: dict[str, str]) -> int:
    """Runs a program to its end; returns its exit code.

    The program dies with this process. Otherwise it would continue unseen, and a second run of the same stages would
    write into the same folders.
    """
    return subprocess.run(words, env=environment, check=False, preexec_fn=die_with_parent).returncode
