"""Starts Ray on this machine, and says what to do where it does not start."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psutil
import ray

from rlhf.errors import UserError

LOOPBACK = ("127.0.0.1", "::1")
SHARED_MEMORY = "/dev/shm"
SERVERS = ("gcs_server", "raylet")
"""Names of the processes without which nothing goes on."""
TRIED = "2.60."
"""Versions of Ray whose private parts are known here."""


def start_ray(num_cpus: int | None) -> list[psutil.Process]:
    """Starts Ray with an address on loopback; returns the processes without which nothing goes on.

    Raises UserError if it does not start; a start that failed for want of time is tried twice.
    """

    def init() -> None:
        with _few_processes():
            # "local" ignores a Ray that runs here already, as on the head of a cluster.
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Workers have environments of their own, so those that Ray starts in advance stay idle.
                _system_config={"prestart_worker_first_driver": False},
            )

    started = start_twice(init)
    [node] = ray.nodes()
    if node["NodeManagerAddress"] not in LOOPBACK:
        ray.shutdown()
        raise UserError(f"Ray: listens at {node['NodeManagerAddress']}, not on loopback; install the locked version")
    servers = [process for process in started if process.name() in SERVERS]
    for server in servers:
        if warning := describe_object_store(server.cmdline()):
            print(warning, file=sys.stderr)
    return servers


def describe_object_store(command: Sequence[str]) -> str | None:
    """Returns what to tell if this command of Ray's raylet keeps objects on disk; Ray's own log is not shown."""
    folders = [word.partition("=")[2] for word in command if word.startswith("--plasma_directory=")]
    if not folders or folders[0] == SHARED_MEMORY:
        return None
    free = shutil.disk_usage(SHARED_MEMORY).free // 2**20 if os.path.isdir(SHARED_MEMORY) else 0
    return (
        f"warning: {SHARED_MEMORY} has {free} MB free, too few for Ray's objects, so it keeps them in {folders[0]}, "
        f"where they may be slow; make {SHARED_MEMORY} larger (docker run --shm-size, or an emptyDir of medium Memory)"
    )


@contextmanager
def _few_processes() -> Iterator[None]:
    """Ray that is started within the block has no autoscaler, log monitor and dashboard.

    One machine does not grow, workers' output stays in their files, and without a dashboard its server only reports
    usage. `ray.init` has no arguments for them, and waits for the last one. Other versions than `TRIED` start all.
    """
    if not ray.__version__.startswith(TRIED):
        yield
        return
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    class Params(RayParams):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.no_monitor, self.include_log_monitor = True, False

    def no_api_server(node: Node, **_: Any) -> None:
        """Starts nothing."""

    with patch("ray._private.parameter.RayParams", Params), patch.object(Node, "start_api_server", no_api_server):
        yield


def start_twice(init: Callable[[], None]) -> list[psutil.Process]:
    """Calls `init`, and again if it fails for want of time; returns the processes that it started.

    Raises UserError with the remedy if it fails for another reason, or again. What it had started is then ended.
    """
    for is_last in (False, True):
        before = set(psutil.Process().children())
        try:
            init()
        except Exception as error:  # noqa: BLE001 - Ray raises bare ones, for a time-out too
            for process in set(psutil.Process().children()) - before:
                process.kill()
            if _lasts(error) or is_last:
                raise UserError(f"Ray does not start on this machine: {describe_failure(error)}") from error
        else:
            break
    return [process for process in psutil.Process().children() if process not in before]


def _lasts(error: Exception) -> bool:
    """Returns whether a second try would fail as the first."""
    return isinstance(error, (OSError, ValueError)) and not isinstance(error, (ConnectionError, TimeoutError))


def describe_failure(error: Exception) -> str:
    """Returns why Ray did not start, and the remedy."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if "AF_UNIX path length" in str(error):
        return f"the path of its temporary folder is too long ({folder}); set RAY_TMPDIR to a short one, such as /tmp"
    if isinstance(error, OSError) and _lasts(error):
        return f"{error}; set RAY_TMPDIR (now {folder}) to a folder that can be written and has room"
    if isinstance(error, ValueError):
        return f"{error}; free memory, or give the container more, and more room in /dev/shm"
    free = ", ".join(f"{shutil.disk_usage(place).free // 2**20} MB in {place}" for place in (folder, "/dev/shm"))
    return (
        f"{error}, twice; free are {free}: make room, or wait until the machine is less busy "
        f"(logs: {folder}/ray/session_latest/logs)"
    )
