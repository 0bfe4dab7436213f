"""A pool of actors of one role, each with one call at a time; a lost actor is replaced."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

import ray
import ray.exceptions

from actors.telemetry.incidents import WAITING, Incidents
from rlhf.errors import UserError

POLL_S = 5.0
"""Longest time between looks at calls that do not answer."""
SLOW_START_S = 60.0
"""A replacement that has not answered for this long is reported."""
MAX_FAILED_STARTS = 3
"""Failed starts in a row that end the run: the machine is then not at fault."""


@dataclass(kw_only=True, eq=False)
class Worker:
    """A place in the pool; its actor changes when it is replaced."""

    place: int
    """Number within the role."""
    handle: Any
    """Handle of the actor."""
    version: int = -1
    """Version of the weights that the actor has proved to hold; -1 before its first proof."""
    refusals: int = 0
    """Number of actors in a row in this place that could not prove their weights."""
    failed_starts: int = 0
    is_asleep: bool = False
    """Whether the actor's last call was to sleep; every other call wakes it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a call."""

    worker: Worker
    result: Any = None
    lost: Literal["worker", "object"] | None = None
    """`worker`: the actor was lost and has been replaced. `object`: an argument was lost with the node that held it."""


Settle = Callable[[Outcome], None]


@dataclass(frozen=True, kw_only=True)
class _Call:
    worker: Worker
    since: float
    settle: Settle


class WorkerPool:
    """The workers of a role. The process that made them owns them, and they end with it; not thread-safe.

    Bookkeeping per call takes constant time, whatever the number of workers.
    """

    def __init__(self, role: str, make: Callable[[int], Any], size: int, incidents: Incidents) -> None:
        """`make` starts the actor of a place; it is called again when that actor is lost."""
        self.role, self.workers = role, [Worker(place=place, handle=make(place)) for place in range(size)]
        self.idle = dict.fromkeys(self.workers)
        """Workers without a call; the last one became idle last."""
        self.ended: SimpleQueue[tuple[WorkerPool, Future]] = SimpleQueue()
        """Calls that have ended, for `end`; several pools may share one queue."""
        self._make, self._incidents = make, incidents
        self._calls: dict[Future, _Call] = {}
        self._starting: dict[Worker, None] = {}
        self._versions = Counter({-1: size})
        self._ended_s = 0.0

    @property
    def busy_s(self) -> float:
        """Seconds that all workers together have spent in calls."""
        now = time.monotonic()
        return self._ended_s + sum(now - call.since for call in self._calls.values())

    def begin(self, worker: Worker, call: ray.ObjectRef, settle: Settle) -> None:
        """Notes that an idle worker runs `call`; `settle` receives the outcome."""
        del self.idle[worker]
        worker.is_asleep = False
        future = call.future()
        self._calls[future] = _Call(worker=worker, since=time.monotonic(), settle=settle)
        future.add_done_callback(lambda done: self.ended.put((self, done)))

    def end(self, future: Future) -> None:
        """Settles a call that has ended; an expired call was settled before. A lost worker is replaced first.

        Raises UserError if the call did, or if a worker cannot be started at all.
        """
        if future not in self._calls:
            return
        call = self._release(future)
        worker = call.worker
        try:
            outcome = Outcome(worker=worker, result=future.result())
            worker.failed_starts = 0
            self._starting.pop(worker, None)
        except ray.exceptions.ObjectLostError:
            outcome = Outcome(worker=worker, lost="object")
        except ray.exceptions.RayTaskError as error:
            cause = find_user_error(error)
            if cause is not None:
                raise cause from error
            outcome = self._lose(worker, "raised", str(error))
        except ray.exceptions.RayError as error:
            self._check_start(worker, error)
            outcome = self._lose(worker, "died", str(error))
        call.settle(outcome)

    def _release(self, future: Future) -> _Call:
        call = self._calls.pop(future)
        self._ended_s += time.monotonic() - call.since
        self.idle[call.worker] = None
        return call

    def _lose(self, worker: Worker, cause: str, detail: str) -> Outcome:
        self.replace(worker, cause, detail)
        return Outcome(worker=worker, lost="worker")

    def _check_start(self, worker: Worker, error: ray.exceptions.RayError) -> None:
        if getattr(error, "actor_init_failed", False):
            worker.failed_starts += 1
        if worker.failed_starts >= MAX_FAILED_STARTS:
            raise UserError(f"a {self.role} cannot be started: {error}") from error

    def replace(self, worker: Worker, cause: str, detail: str = "") -> None:
        """Puts a new actor into the place of an idle worker; the old actor is killed."""
        self._incidents.add(self.role, cause, detail)
        ray.kill(worker.handle)
        worker.handle = self._make(worker.place)
        worker.is_asleep = False
        self.set_version(worker, -1)
        self._starting[worker] = None

    @property
    def are_asleep(self) -> bool:
        """Whether every actor has confirmed that it sleeps."""
        return all(worker.is_asleep for worker in self.workers)

    def begin_sleep(self) -> None:
        """Sends the idle actors to sleep, those included that replaced others."""
        for worker in [worker for worker in self.idle if not worker.is_asleep]:
            self.begin(worker, worker.handle.sleep.remote(), self._settle_sleep)

    def _settle_sleep(self, outcome: Outcome) -> None:
        outcome.worker.is_asleep = outcome.lost is None

    def set_version(self, worker: Worker, version: int) -> None:
        """Notes the version of the weights that a worker holds."""
        self._versions[worker.version] -= 1
        self._versions[version] += 1
        worker.version = version

    def all_hold(self, version: int) -> bool:
        """Returns whether every worker holds the weights of a version."""
        return self._versions[version] == len(self.workers)

    def report_slow_starts(self) -> None:
        """Reports replacements that start slowly: if a node is gone, the others may have no room for them."""
        if not self._starting:
            return
        for call in self._calls.values():
            if call.worker in self._starting and time.monotonic() - call.since > SLOW_START_S:
                del self._starting[call.worker]
                detail = f"place {call.worker.place}: no answer for {SLOW_START_S:.0f} s; is there room in the cluster?"
                self._incidents.add(self.role, WAITING, detail)

    def expire(self, timeout_s: float) -> None:
        """Replaces workers whose call has lasted longer than `timeout_s`, and settles these calls as lost."""
        # Calls are in the order in which they began, so the first that has not expired ends the search.
        while self._calls and time.monotonic() - next(iter(self._calls.values())).since > timeout_s:
            call = self._release(next(iter(self._calls)))
            call.settle(self._lose(call.worker, "timeout", f"no answer within {timeout_s:.0f} s"))

    def dismiss(self) -> None:
        """Ends all actors."""
        for worker in self.workers:
            ray.kill(worker.handle)


def ended_calls(queue: SimpleQueue[tuple[WorkerPool, Future]]) -> Iterator[tuple[WorkerPool, Future]]:
    """Waits for the end of a call, but not longer than `POLL_S`; yields it and all others that have ended by then."""
    with suppress(Empty):
        yield queue.get(timeout=POLL_S)
        for _ in range(queue.qsize()):
            yield queue.get_nowait()


def send_to_sleep(pools: Sequence[WorkerPool], timeout_s: float) -> None:
    """Returns when all actors of the pools sleep, which share a queue; lost ones are replaced, and these sleep too.

    Calls that go on are waited for. Raises UserError if an actor cannot be started at all.
    """
    while not all(pool.are_asleep for pool in pools):
        for pool in pools:
            pool.begin_sleep()
        for pool, call in ended_calls(pools[0].ended):
            pool.end(call)
        for pool in pools:
            pool.report_slow_starts()
            pool.expire(timeout_s)


def find_user_error(error: BaseException | None) -> UserError | None:
    """Returns the UserError inside the wrappers of each process; Ray's own error contains the traceback."""
    while error is not None:
        if isinstance(error, UserError) and not isinstance(error, ray.exceptions.RayTaskError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
