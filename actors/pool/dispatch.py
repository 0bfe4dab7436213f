"""Runs tasks on a pool of samplers and a pool of scorers until all are finished; lost work is repeated.

Noise depends on the task alone, so a repeated task gives the same images, whichever sampler runs it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from actors.messages import RolloutReceipt, RolloutTask, ScoreReceipt
from actors.pool.queue_times import QueueTimes
from actors.pool.task_records import FinishedTask, Job, PoisonPrompt, check_rewards
from actors.pool.worker_pool import Outcome, Worker, WorkerPool, ended_calls, send_to_sleep
from actors.weight_sync import WeightsNotice, find_fault
from rlhf.errors import UserError

MAX_DEATHS = 2
"""Number of workers that may die at a task before its prompts are tried one by one."""
MAX_TRIALS = 3
"""Number of times that a task's prompts are tried one by one before the run ends."""
MAX_REFUSALS = 3
"""Replacements in a row of one sampler that cannot prove the weights before the run ends: another part is at fault."""


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
    sampling_method: Callable[[Any], Any] = lambda handle: handle.rollout
    """Method of a sampler's handle that takes notice and task, and returns receipt, images and trajectories."""
    keep_images: bool = False
    """Keeps images after scoring; otherwise only those of the first task are kept, for the grid."""
    takes_turns: bool = False
    """The pools share GPUs with each other and with the learner: one works at a time, and before and after a run all
    sleep. Scorers begin when all tasks have been sampled."""
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
        run = TaskRun(self, notice, tasks, count=count)
        try:
            run.assign()
            while run.unfinished:
                for pool, call in ended_calls(self.samplers.ended):
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
            if self.takes_turns:
                send_to_sleep(self.pools, self.timeout_s)
        finally:
            run.is_over = True
            self.repeated += run.repeated


class TaskRun:
    """Queues and counts of one run. Callers assign and settle until `unfinished` is 0, and then set `is_over`."""

    def __init__(
        self, workers: "Dispatcher", notice: WeightsNotice, tasks: Iterable[RolloutTask], *, count: int
    ) -> None:
        """`count` is the number of tasks, or 0 if it is unknown; the first task is fetched."""
        self._workers, self._samplers, self._scorers = workers, workers.samplers, workers.scorers
        self._notice = notice
        self._fresh = (Job(task=task, number=number) for number, task in enumerate(tasks))
        self._not_fetched = count
        self._to_sample: deque[Job] = deque()
        self._to_score: deque[Job] = deque()
        self.done: deque[FinishedTask] = deque()
        """Finished tasks that the caller has not taken yet."""
        self.unfinished = 0
        """Tasks started but not finished. One task is always prefetched, so 0 means that no task is left."""
        self.repeated = 0
        """Number of tasks, or parts of them, that were done again."""
        self.is_over = False
        """Results that arrive after the run are dropped."""
        self._turn = self._samplers
        """The pool that works, or will as soon as the other one sleeps."""
        self._prefetch()
        if self._may_work(self._samplers):
            for worker in [worker for worker in self._samplers.idle if worker.version != notice.version]:
                self._load_weights(worker)

    @property
    def waiting(self) -> tuple[int, int]:
        """Numbers of tasks that wait for a sampler and for a scorer."""
        return self._not_fetched + len(self._to_sample), len(self._to_score)

    def assign(self) -> None:
        """Gives work to idle workers. Called after each settled call, so it looks at the newest idle sampler only."""
        if self._workers.takes_turns:
            self._pass_turn()
        idle = self._samplers.idle
        while idle and self._may_work(self._samplers):
            worker = next(reversed(idle))
            if worker.version != self._notice.version:
                self._load_weights(worker)
            elif self._to_sample:
                self._sample(worker, self._to_sample.popleft())
            else:
                break
        while self._scorers is not None and self._scorers.idle and self._to_score and self._may_work(self._scorers):
            worker, job = next(reversed(self._scorers.idle)), self._to_score.popleft()
            call = worker.handle.score.remote(job.task, job.images)
            self._scorers.begin(worker, call, partial(self._settle_scores, job))

    def _may_work(self, pool: WorkerPool) -> bool:
        if not self._workers.takes_turns:
            return True
        return pool is self._turn and all(other.are_asleep for other in self._workers.pools if other is not pool)

    def _pass_turn(self) -> None:
        """Gives the other pool the turn when this one has nothing left to do; whose turn it is not goes to sleep."""
        queues = dict(zip(self._workers.pools, (self._to_sample, self._to_score), strict=True))
        (other,) = queues.keys() - {self._turn}
        is_done = not queues[self._turn] and len(self._turn.idle) == len(self._turn.workers)
        if is_done and queues[other]:
            self._turn, other = other, self._turn
        other.begin_sleep()

    def _load_weights(self, worker: Worker) -> None:
        self._samplers.begin(worker, worker.handle.load_weights.remote(self._notice), self._settle_weights)

    def _sample(self, worker: Worker, job: Job) -> None:
        begin = self._workers.sampling_method(worker.handle)
        call, job.images, job.trajectories = begin.options(num_returns=3).remote(self._notice, job.task)
        self._samplers.begin(worker, call, partial(self._settle_rollout, job))
        self._prefetch()

    def _prefetch(self) -> None:
        job = None if self._to_sample else next(self._fresh, None)
        if job is not None:
            self._to_sample.append(job)
            self.unfinished += 1
            self._not_fetched = max(0, self._not_fetched - 1)

    def _settle_weights(self, outcome: Outcome) -> None:
        """Also counts after the run: the next run then knows which weights the sampler holds."""
        worker = outcome.worker
        if outcome.lost == "worker":
            return
        ack, lost = outcome.result, outcome.lost
        fault = "the weights were lost" if lost else find_fault(ack, self._notice, self._workers.probe_tolerance)
        if fault is None:
            self._samplers.set_version(worker, self._notice.version)
            worker.refusals = 0
            return
        worker.refusals += 1
        if worker.refusals >= MAX_REFUSALS:
            raise UserError(
                f"align: a sampler could not prove its weights {MAX_REFUSALS} times in a row: {fault}; give learner "
                "and samplers the same device and cluster.threads_*, or raise align.max_ratio_error"
            )
        self._samplers.replace(worker, "weights", fault)

    def _settle_rollout(self, job: Job, outcome: Outcome) -> None:
        if self._is_lost(job, outcome):
            return
        receipt: RolloutReceipt = outcome.result
        job.forward_images, job.receipt = receipt.forward_images, receipt
        if (receipt.version, receipt.checksum) != (self._notice.version, self._notice.checksum):
            self._samplers.replace(outcome.worker, "weights", f"sampled with version {receipt.version}")
            self._to_sample.appendleft(job)
        elif self._scorers is not None:
            self._to_score.append(job)
        elif not job.is_trial:
            self._finish(job, ScoreReceipt(scores={}))

    def _settle_scores(self, job: Job, outcome: Outcome) -> None:
        if self._is_lost(job, outcome) or job.is_trial:
            return
        scored: ScoreReceipt = outcome.result
        check_rewards(scored.scores, job.task)
        self._finish(job, scored)

    def _finish(self, job: Job, scored: ScoreReceipt) -> None:
        assert job.trajectories is not None
        self.unfinished -= 1
        is_kept = self._scorers is None or self._workers.keep_images or job.number == 0
        self.done.append(
            FinishedTask(
                number=job.number,
                prompt_ids=job.task.prompt_ids,
                images=job.images if is_kept else None,
                trajectories=job.trajectories,
                scores=scored.scores,
                scorer_memory_bytes=scored.memory_bytes,
                forward_images=job.forward_images,
                receipt=job.receipt,
            )
        )

    def _is_lost(self, job: Job, outcome: Outcome) -> bool:
        """Returns whether there is no result to use; a run in progress queues lost work again."""
        if self.is_over:
            return True
        if outcome.lost is None:
            return False
        self.repeated += 1
        if outcome.lost == "worker":
            self._count_death(job)
        else:
            self._to_sample.appendleft(job)
        return True

    def _count_death(self, job: Job) -> None:
        """Repeats a job whose worker was lost; after repeated losses each of its prompts is tried alone."""
        job.deaths += 1
        if job.is_trial:
            raise PoisonPrompt(job.task.prompt_ids[0])
        if job.deaths < MAX_DEATHS:
            self._to_sample.appendleft(job)
            return
        job.deaths, job.trials = 0, job.trials + 1
        if job.trials > MAX_TRIALS:
            raise UserError(
                f"prompts {', '.join(job.task.prompt_ids)} together kill every worker, though none does alone; "
                "lower micro_batch_size, or see incidents.jsonl"
            )
        self._to_sample.append(job)
        tasks = [replace(job.task, prompt_ids=(name,)) for name in job.task.prompt_ids]
        self._to_sample.extendleft(Job(task=task, is_trial=True) for task in tasks)
