"""Runs `rlhf` and the studies as their users do."""

import subprocess
import sys


def rlhf(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhf", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def run_study(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a study as its user does."""
    command = [sys.executable, "-m", f"benchmarks.studies.{name}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
