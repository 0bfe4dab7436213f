"""Follows the memory of a command and of every process that it starts, until they end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

POLL_S = 0.25


@dataclass(kw_only=True)
class ProcessMemory:
    """Peaks of a process and its descendants; `peak_gb` of each includes what it shares with others."""

    peak_gb: dict[int, float] = field(default_factory=dict)
    """Largest resident memory that the kernel has counted, by process id."""
    titles: dict[int, str] = field(default_factory=dict)
    cpu_s: dict[int, float] = field(default_factory=dict)
    together_gb: float = 0.0
    """Largest sum over processes that lived at once, with what they share counted once."""

    def read(self, root: psutil.Process) -> None:
        """Adds a reading of all processes that live now."""
        alone_kb, shared_kb = 0, [0]
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                status, times = _read_status(process.pid), process.cpu_times()
                title = title_of(process.cmdline())
            except (psutil.Error, OSError):  # It has ended since.
                continue
            if "VmHWM" not in status:  # It is ending.
                continue
            self.peak_gb[process.pid] = status["VmHWM"] * 1024 / 1e9
            self.cpu_s[process.pid] = times.user + times.system
            # An actor of Ray is idle at first and at its end; its title says what it is in between.
            if title and (title != "ray::IDLE" or process.pid not in self.titles):
                self.titles[process.pid] = title
            alone_kb += status["RssAnon"]
            shared_kb.append(status["RssShmem"])
        self.together_gb = max(self.together_gb, (alone_kb + max(shared_kb)) * 1024 / 1e9)

    def by_title(self) -> dict[str, float]:
        """Returns the largest peak of each kind of process in GB, the largest kind first."""
        peaks: dict[str, float] = {}
        for pid, peak in self.peak_gb.items():
            title = self.titles.get(pid, "")
            peaks[title] = max(peaks.get(title, 0.0), peak)
        return dict(sorted(peaks.items(), key=lambda item: -item[1]))


def _read_status(pid: int) -> dict[str, int]:
    """Returns the sizes in /proc/PID/status in kB, by name; Linux only."""
    with open(f"/proc/{pid}/status") as file:
        rows = [line.split() for line in file]
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}


def title_of(words: list[str]) -> str:
    """Returns a short name of a process: what Ray calls an actor, without its method, or program and command."""
    if not words:
        return ""
    if words[0].startswith("ray::"):
        return words[0].split(".")[0].split()[0]
    program = words[0].rpartition("/")[2]
    if program.startswith("python") and len(words) > 2 and words[1] == "-m":
        return " ".join(word for word in words[2:4] if not word.startswith("-"))
    if program.startswith("python") and len(words) > 1:
        return next((word for word in words[1:] if not word.startswith("-")), program).rpartition("/")[2]
    return program


@contextmanager
def watching(pid: int) -> Iterator[ProcessMemory]:
    """Yields what is read of the process and its descendants within the block."""
    memory, is_over, root = ProcessMemory(), threading.Event(), psutil.Process(pid)

    def watch() -> None:
        memory.read(root)
        while not is_over.wait(POLL_S):
            memory.read(root)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        is_over.set()
        thread.join()
