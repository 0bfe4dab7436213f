"""Runs `rlhf` and the studies as their users do: from words to exit code and printed lines."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

from benchmarks.studies.command_line import run_as_program
from rlhf.commands.cli import main


def rlhf(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `rlhf` in this process, which has imported torch already."""
    return run_here(main, ["rlhf", *words], cwd)


def rlhf_process(
    *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `rlhf` in a process of its own, where that is part of the claim."""
    command = [sys.executable, "-m", "rlhf", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)


def run_study(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a study in this process."""
    study = importlib.import_module(f"benchmarks.studies.{name}")
    return run_here(lambda: run_as_program(study.main), [name, *words])


def run_here(
    program: Callable[[], None], words: Sequence[object], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Call a program with these words as its own, and let it leave this process as it was."""
    argv, out, err = list(map(str, words)), io.StringIO(), io.StringIO()
    code: str | int | None = 0
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program()
        except SystemExit as stopped:
            code = stopped.code
        except Exception:  # as the interpreter does
            traceback.print_exc()
            code = 1
    assert code is None or isinstance(code, int), "exit codes are numbers"
    return subprocess.CompletedProcess(argv, code or 0, out.getvalue(), err.getvalue())
