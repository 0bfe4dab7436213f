"""The dispatcher: runs tasks on a pool of samplers and a pool of scorers, one run at a time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty
from typing import Any

import ray

from actors.messages import RolloutTask, WeightsNotice
from actors.queue_times import QueueTimes
from actors.task_run import BeginSampling, FinishedTask, TaskRun
from actors.worker_pool import WorkerPool

POLL_S = 5.0
"""Longest time between looks at calls that do not answer."""


def begin_rollout(handle: Any, notice: WeightsNotice, task: RolloutTask) -> tuple[ray.ObjectRef, ...]:
    """Starts `RolloutSampler.rollout`; returns the references of receipt, images and trajectories."""
    return handle.rollout.options(num_returns=3).remote(notice, task)


def begin_painting(handle: Any, notice: WeightsNotice, task: RolloutTask) -> tuple[ray.ObjectRef, ...]:
    """Starts `RolloutSampler.paint`; returns the references of receipt, PNG images and None."""
    return handle.paint.options(num_returns=3).remote(notice, task)


@dataclass(kw_only=True)
class Dispatcher:
    """Owns both pools. A run's state lies in its TaskRun."""

    samplers: WorkerPool
    scorers: WorkerPool | None
    """None if samples are not scored: a task is then finished when it is sampled."""
    timeout_s: float
    """Longest duration of a call in seconds, including the start of a new worker."""
    probe_tolerance: float = 1e-6
    """Largest relative difference between the log-probs of a sampler's probe and the learner's."""
    begin_sampling: BeginSampling = begin_rollout
    keep_images: bool = False
    """Keeps images after scoring; otherwise only those of the first task are kept, for the grid."""
    repeated: int = 0
    """Number of tasks, or parts of them, that were done again in all runs."""

    def __post_init__(self) -> None:
        """Both pools report to one queue, so that one wait serves both."""
        for pool in self.pools:
            pool.ended = self.samplers.ended

    @property
    def pools(self) -> list[WorkerPool]:
        """Returns the pools that exist."""
        return [self.samplers] if self.scorers is None else [self.samplers, self.scorers]

    def run(
        self, notice: WeightsNotice, tasks: Iterable[RolloutTask], times: QueueTimes | None = None, *, count: int = 0
    ) -> list[FinishedTask]:
        """Runs `stream` to its end; returns the results in the order of `tasks`, whose number is `count`."""
        return sorted(self.stream(notice, tasks, times, count=count), key=lambda finished: finished.number)

    def stream(
        self, notice: WeightsNotice, tasks: Iterable[RolloutTask], times: QueueTimes | None = None, *, count: int = 0
    ) -> Iterator[FinishedTask]:
        """Samples all tasks with the weights of `notice` and scores them; yields each task when it is finished.

        A task is fetched from `tasks` when a sampler is about to need it, and none while the caller is busy, so
        few are in memory. A sampler receives tasks once it has proved that it holds these weights; a sampler that
        cannot is replaced. `times` records waiting tasks and the time until all samplers hold the weights. Raises
        PoisonPrompt if a prompt kills its workers, and UserError if samplers or scorers do.
        """
        times = times or QueueTimes()
        run = TaskRun(
            notice,
            tasks,
            self.samplers,
            self.scorers,
            begin_sampling=self.begin_sampling,
            probe_tolerance=self.probe_tolerance,
            keep_images=self.keep_images,
            count=count,
        )
        try:
            run.assign()
            while run.unfinished:
                for pool, call in self._ended():
                    pool.end(call)
                    run.assign()
                to_sample, to_score = run.waiting
                times.note(is_synced=self.samplers.all_hold(notice.version), to_sample=to_sample, to_score=to_score)
                for pool in self.pools:
                    pool.report_slow_starts()
                    pool.expire(self.timeout_s)
                run.assign()
                while run.done:
                    yield run.done.popleft()
        finally:
            run.is_over = True
            self.repeated += run.repeated

    def _ended(self) -> Iterator[tuple[WorkerPool, Future]]:
        """Waits for the end of a call; yields it and all others that have ended."""
        queue = self.samplers.ended
        try:
            yield queue.get(timeout=POLL_S)
            while True:
                yield queue.get_nowait()
        except Empty:
            return
