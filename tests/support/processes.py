"""Helpers that several tests share, of processes."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from align_runs import TIMINGS

from rlhf.reports.metrics_log import read_metrics


def figures(run: Path) -> list[dict]:
    """All that does not depend on time or on what was mended."""
    left_out = TIMINGS | {"learners"}
    return [{k: v for k, v in line.items() if k not in left_out and "restarts" not in k} for line in read_metrics(run)]


def find_process(role: str) -> psutil.Process:
    """A process of that role, of this driver's Ray."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
            if f"ray::{role}" in " ".join(process.cmdline()):
                return process
    raise AssertionError(f"no process is a {role}")


def wait_for(is_true: Callable[[], bool], timeout_s: float = 240) -> None:
    limit = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.05)
