"""Times alternatives in turn on one machine, and formats the figures."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

Figures = dict[str, Any]
"""Figures of a benchmark by name, as its JSON file holds them."""


class Spread(TypedDict):
    """Median and quartiles of a figure."""

    median: float
    low: float
    high: float


def interleave(alternatives: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each alternative in every round.

    The alternatives run in turn, so that a slow minute of the machine affects all of them. Each runs once before the
    first round, unmeasured.
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


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Returns median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """Returns the time of the first over that of the second, round by round."""
    return spread([a / b for a, b in zip(slower, faster, strict=True)])


def show(figure: Mapping[str, object], spec: str = ".2f") -> str:
    """Formats `median [lower quartile, upper quartile]`."""
    return f"{figure['median']:{spec}} [{figure['low']:{spec}}, {figure['high']:{spec}}]"


def peak_megabytes(module: str, name: str, processes: int = 3) -> Spread:
    """Returns the peak resident memory of `python -m module --alone name` above that of its imports, in MB."""
    command = [sys.executable, "-m", module, "--alone", name]
    done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(processes)]
    return spread([json.loads(one.stdout.splitlines()[-1]) for one in done])


def report_alone(build: Callable[[], Callable[[], object]]) -> None:
    """Builds and runs one alternative, and prints the memory that it adds, for `peak_megabytes`."""
    import psutil

    before = psutil.Process().memory_info().rss
    with PeakMemory() as peak:
        build()()
    print((peak.bytes - before) / 1e6)


class PeakMemory:
    """Peak resident memory of this process; a thread reads it every few milliseconds."""

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
    """Returns the processor, the numbers of cores and threads, and the version of PyTorch."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
