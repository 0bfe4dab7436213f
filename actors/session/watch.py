"""Ends a command whose Ray died. Ray itself would wait for minutes, or for ever."""

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

WATCH_S = 1.0
"""Seconds between two looks at Ray's processes."""


@contextmanager
def end_with_ray(servers: Sequence[psutil.Process]) -> Iterator[None]:
    """Ends this process with exit code 2, and Ray's other processes, if one of `servers` dies during the `with`.

    It says which one died, and which command goes on. Nothing is cleaned up: all that a run keeps is written whole.
    """
    is_over = threading.Event()
    family = _Family(servers)

    def watch() -> None:
        while not is_over.wait(WATCH_S):
            family.end_if_orphaned()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        family.end_if_orphaned()  # The error is then no more than a consequence.
        raise
    finally:
        is_over.set()
        thread.join()


class _Family:
    """Ray's processes on this machine. They are looked up while all live: the children of a dead one have no parent."""

    def __init__(self, servers: Sequence[psutil.Process]) -> None:
        self._names = {server: server.name() for server in servers}
        self._members: set[psutil.Process] = set()
        self._lock = threading.Lock()

    def end_if_orphaned(self) -> None:
        with self._lock:
            dead = [name for server, name in self._names.items() if not _lives(server)]
            members = set(psutil.Process().children(recursive=True))
            if not dead:
                self._members = members
                return
            for process in members | self._members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            print(f"\nerror: {describe_death(dead[0], sys.argv)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(2)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def describe_death(server: str, argv: Sequence[str]) -> str:
    """Returns what a command says, if this process of Ray died under it, and how to go on."""
    words = list(argv[1:])
    if words[:1] == ["align"] and "--resume" not in words:
        words.append("--resume")
    return (
        f"Ray's {server} died, perhaps because memory or /dev/shm ran out; what was finished is on disk. "
        f"Go on with: {shlex.join(['rlhf', *words])}"
    )
