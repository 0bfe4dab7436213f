"""Actors of one role, each with one call at a time; one that is lost is replaced."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions

from actors.incidents import WAITING, Incidents
from rlhf.errors import UserError

SLOW_START_S = 60.0
"""From when on a replacement that has not answered is reported."""
MAX_FAILED_STARTS = 3
"""Starts in a row that raise, until the run ends: the fault is then not the machine's."""


@dataclass(kw_only=True, eq=False)
class Worker:
    """A place in the crew; its actor changes when it is replaced."""

    place: int
    """Number within the role."""
    handle: Any
    version: int = -1
    """Of the weights that it has proved to hold."""
    job: Any = None
    """What it is at, None where it waits."""
    since: float = 0.0
    failed_starts: int = 0
    refusals: int = 0
    """Times in a row that an actor in this place could not prove its weights."""
    is_new: bool = False
    """It is a replacement that has not answered yet, nor been reported for that."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended."""

    worker: Worker
    job: Any
    result: Any = None
    lost: Literal["worker", "object"] | None = None
    """The worker, which was replaced; or an object that the call was given, with the node that held it."""


class Crew:
    """The workers of a role. Owned by the process that made them, and gone with it; not thread-safe."""

    def __init__(self, role: str, make: Callable[[int], Any], size: int, incidents: Incidents) -> None:
        """`make` starts the actor of a place; it is called again where that is lost."""
        self.role, self.workers = role, [Worker(place=place, handle=make(place)) for place in range(size)]
        self._make, self._incidents = make, incidents
        self._calls: dict[ray.ObjectRef, Worker] = {}
        self._ended_s = 0.0

    @property
    def busy_s(self) -> float:
        """Time of all workers together in calls, up to now."""
        now = time.monotonic()
        return self._ended_s + sum(now - worker.since for worker in self._calls.values())

    def idle(self) -> list[Worker]:
        """Workers that wait for a call."""
        return [worker for worker in self.workers if worker.job is None]

    def begin(self, worker: Worker, job: Any, call: ray.ObjectRef) -> None:
        """Note that a worker is at a job, whose end `call` tells."""
        worker.job, worker.since = job, time.monotonic()
        self._calls[call] = worker

    def calls(self) -> list[ray.ObjectRef]:
        """Of all that are at work."""
        return list(self._calls)

    def has(self, call: ray.ObjectRef) -> bool:
        """Whether one of its workers is at that call."""
        return call in self._calls

    def end(self, call: ray.ObjectRef) -> Outcome:
        """How a call ended that is over; a worker that did not answer it has been replaced.

        Raises UserError as the call did, and where a worker cannot be started at all.
        """
        worker = self._calls.pop(call)
        job, worker.job = worker.job, None
        self._ended_s += time.monotonic() - worker.since
        try:
            result = ray.get(call)
        except ray.exceptions.ObjectLostError:
            return Outcome(worker=worker, job=job, lost="object")
        except ray.exceptions.RayTaskError as error:
            cause = find_user_error(error)
            if cause is not None:
                raise cause from error
            self.replace(worker, "raised", str(error))
            return Outcome(worker=worker, job=job, lost="worker")
        except ray.exceptions.RayError as error:
            self._check_start(worker, error)
            self.replace(worker, "died", str(error))
            return Outcome(worker=worker, job=job, lost="worker")
        worker.failed_starts, worker.is_new = 0, False
        return Outcome(worker=worker, job=job, result=result)

    def _check_start(self, worker: Worker, error: ray.exceptions.RayError) -> None:
        if getattr(error, "actor_init_failed", False):
            worker.failed_starts += 1
        if worker.failed_starts >= MAX_FAILED_STARTS:
            raise UserError(f"a {self.role} cannot be started: {error}") from error

    def replace(self, worker: Worker, cause: str, detail: str = "") -> None:
        """Put a new actor into a worker's place; the old one is never used again."""
        self._incidents.add(self.role, cause, detail)
        ray.kill(worker.handle)
        worker.handle, worker.version, worker.job, worker.is_new = self._make(worker.place), -1, None, True

    def report_slow_starts(self) -> None:
        """Note replacements that take long to start: where a node is gone, the others may have no room for them."""
        for worker in self._calls.values():
            if worker.is_new and time.monotonic() - worker.since > SLOW_START_S:
                worker.is_new = False
                detail = f"place {worker.place}: no answer for {SLOW_START_S:.0f} s; is there room in the cluster?"
                self._incidents.add(self.role, WAITING, detail)

    def expire(self, timeout_s: float) -> list[Any]:
        """Replace workers whose call has lasted longer; returns their jobs."""
        jobs = []
        for call, worker in list(self._calls.items()):
            if time.monotonic() - worker.since > timeout_s:
                del self._calls[call]
                self._ended_s += time.monotonic() - worker.since
                jobs.append(worker.job)
                self.replace(worker, "timeout", f"no answer within {timeout_s:.0f} s")
        return jobs

    def dismiss(self) -> None:
        """End all actors."""
        for worker in self.workers:
            ray.kill(worker.handle)


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError inside the wrappers that each process puts around it; Ray's own name the traceback."""
    while error is not None:
        if isinstance(error, UserError) and not isinstance(error, ray.exceptions.RayTaskError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
