"""Timing alternatives in turn on the same machine, and what such figures look like on the screen."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Figures = dict[str, Any]


def interleave(alternatives: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each alternative in every round: all in turn, so that a slower minute of the machine meets them all.

    Each runs once before, unmeasured.
    """
    for run in alternatives.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds):
        names = list(alternatives)
        for name in names if number % 2 == 0 else reversed(names):
            started = time.perf_counter()
            alternatives[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """How many times as long the first took as the second, round by round."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def show(figure: Mapping[str, float], spec: str = ".2f") -> str:
    """Median and quartiles as text."""
    return "{} [{}, {}]".format(*(format(figure[key], spec) for key in ("median", "low", "high")))


def peak_megabytes(module: str, name: str, processes: int = 3) -> dict[str, float]:
    """Peak resident memory that `python -m module --alone name` adds to what its imports take: models, batch, run."""
    command = [sys.executable, "-m", module, "--alone", name]
    done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(processes)]
    return spread([json.loads(one.stdout.splitlines()[-1]) for one in done])


def report_alone(build: Callable[[], Callable[[], object]]) -> None:
    """The other end of `peak_megabytes`: builds one alternative and nothing else, runs it, and prints the figure."""
    import psutil

    before = psutil.Process().memory_info().rss
    with PeakMemory() as peak:
        build()()
    print((peak.bytes - before) / 1e6)


class PeakMemory:
    """Resident memory of this process, looked at every few milliseconds in a thread."""

    def __enter__(self) -> "PeakMemory":
        import threading

        import psutil

        self.bytes, self._is_over, process = 0, threading.Event(), psutil.Process()

        def watch() -> None:
            while not self._is_over.wait(0.005):
                self.bytes = max(self.bytes, process.memory_info().rss)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def describe_machine() -> Figures:
    """What figures rest on."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
