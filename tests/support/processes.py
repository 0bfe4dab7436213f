"""Finding a process of a run, and waiting for a fact."""

import contextlib
import time
from collections.abc import Callable

import psutil


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
