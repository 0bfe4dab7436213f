"""Ends a command whose Ray died. Ray itself would wait for minutes, or for ever."""

import contextlib
import math
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import psutil

WATCH_S = 1.0
"""Seconds between two looks at Ray's processes."""
SILENCE_S = 10.0
"""Seconds without an answer after which a joined cluster counts as dead."""
HEAD_SILENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's variable for the seconds that its processes wait for a lost head; set where the head's state survives it."""


@contextmanager
def end_with_ray(servers: Sequence[psutil.Process]) -> Iterator[None]:
    """Ends this process with exit code 2, and Ray's other processes, if one of `servers` dies during the `with`.

    It says which one died, and which command goes on. Nothing is cleaned up: all that a run keeps is written whole.
    """
    family = _Family(servers)
    with _looking(family.end_if_orphaned):
        try:
            yield
        except BaseException:
            family.end_if_orphaned()  # The error is then no more than a consequence.
            raise


@contextmanager
def end_with_cluster(servers: Mapping[str, tuple[str, int]], silence_s: float = SILENCE_S) -> Iterator[None]:
    """Ends this process with exit code 2 if a server of a joined cluster accepts no connection any more.

    That happens `silence_s` after its last one, for `gcs_server` not before the seconds in the variable
    `HEAD_SILENCE`; Ray itself would wait for a minute. It says which server it is, and which command goes on; the
    cluster's processes belong to others. `servers` are host and port by name.
    """
    heard: dict[str, float] = {}
    limits = {"gcs_server": max(silence_s, float(os.environ.get(HEAD_SILENCE, 0.0)))}

    def look(patience_s: float | None = None) -> None:
        for name, place in servers.items():
            try:
                socket.create_connection(place, timeout=silence_s / 2).close()
                heard[name] = time.monotonic()
            except OSError as error:
                silent_s = time.monotonic() - heard.get(name, math.inf)
                if silent_s > (limits.get(name, silence_s) if patience_s is None else patience_s):
                    where = f"{name} at {place[0]}:{place[1]}"
                    _end(f"Ray's {where} has not answered for {silent_s:.0f} s ({error})", "Start Ray there again. ")

    look()  # Only servers that have answered once are watched.
    with _looking(look):
        try:
            yield
        except BaseException:
            look(0.0)  # The error is then no more than a consequence.
            raise


@contextmanager
def _looking(look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` again and again in a thread during the `with`."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
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
            _end(f"Ray's {dead[0]} died, perhaps because memory or /dev/shm ran out")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(what: str, remedy: str = "") -> NoReturn:
    print(f"\nerror: {what}; what was finished is on disk. {describe_way_on(sys.argv, remedy)}", file=sys.stderr)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(2)


def describe_way_on(argv: Sequence[str], remedy: str = "") -> str:
    """Returns how to go on with a command whose Ray died; `remedy` comes first."""
    words = list(argv[1:])
    if words[:1] == ["align"] and "--resume" not in words:
        words.append("--resume")
    return f"{remedy}Go on with: {shlex.join(['rlhf', *words])}"
