"""The tasks of an update through samplers and scorers until all are done; what is lost on the way is done again.

Noise depends on the task alone, so that a task that is repeated, by whichever sampler, gives the same images.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch

from actors.messages import RolloutReceipt, RolloutTask, WeightsAck, WeightsNotice
from actors.queue_times import Flow
from actors.worker_pool import Crew, Outcome
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores

POLL_S = 5.0
MAX_DEATHS = 2
"""Workers that die at a task, until its prompts are tried one by one."""
MAX_TRIALS = 3
"""Times that a task's prompts are tried one by one, until the run ends."""
MAX_REFUSALS = 3
"""Replacements in a row of one sampler that cannot prove the weights, until the run ends: the fault is then not its."""


class PoisonPrompt(Exception):  # noqa: N818
    """A prompt that kills workers, also when it is alone."""

    def __init__(self, prompt_id: str) -> None:
        super().__init__(prompt_id)
        self.prompt_id = prompt_id


@dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """What came of a task."""

    number: int
    """Place among the tasks of the run."""
    prompt_ids: tuple[str, ...]
    images: ray.ObjectRef | None
    """None where they have been scored, and dropped."""
    trajectories: ray.ObjectRef
    scores: dict[str, Scores]
    """By reward; none without scorers."""
    forward_images: int
    """Images that went through the UNet for it."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A task on its way."""

    task: RolloutTask
    number: int = 0
    """Place among the tasks of the run."""
    is_trial: bool = False
    """One prompt alone, to see whether it kills; its results are dropped."""
    deaths: int = 0
    trials: int = 0
    images: ray.ObjectRef | None = None
    trajectories: ray.ObjectRef | None = None
    forward_images: int = 0
    is_dropped: bool = False
    """Of a run that has ended; what comes of it is of no use."""


@dataclass(kw_only=True)
class Dispatcher:
    """Owns both crews; one run at a time."""

    samplers: Crew
    scorers: Crew | None
    """None where samples are not scored: a task is then done when it is sampled."""
    timeout_s: float
    """For one call, a new worker's start included."""
    canary_tolerance: float = 1e-6
    method: str = "rollout"
    """Of the samplers, which is given the notice and a task, and returns receipt, images and trajectories."""
    keep_images: bool = False
    """Also when they have been scored; else only those of the first task, to be shown."""
    repeated: int = 0
    """Tasks, or parts of them, that had to be done again so far."""
    _fresh: Iterator[Job] = field(default_factory=lambda: iter(()))
    _to_sample: deque[Job] = field(default_factory=deque)
    _to_score: deque[Job] = field(default_factory=deque)
    _done: deque[FinishedTask] = field(default_factory=deque)
    _unfinished: int = 0
    """Tasks begun that are not done; 0 means that there are no more, since one is always taken ahead."""
    _not_taken: int = 0
    """Tasks that are still to be taken, where their number is known."""

    @property
    def crews(self) -> list[Crew]:
        """Those there are."""
        return [self.samplers] if self.scorers is None else [self.samplers, self.scorers]

    def run(
        self, notice: WeightsNotice, tasks: Iterable[RolloutTask], flow: Flow | None = None, *, count: int = 0
    ) -> list[FinishedTask]:
        """`stream`, in the order of `tasks`, of which there are `count`."""
        self._not_taken = count
        return sorted(self.stream(notice, tasks, flow), key=lambda finished: finished.number)

    def stream(
        self, notice: WeightsNotice, tasks: Iterable[RolloutTask], flow: Flow | None = None
    ) -> Iterator[FinishedTask]:
        """All tasks sampled with the weights of `notice`, and scored; each as soon as it is done.

        A task is taken from `tasks` when a sampler is about to need it, and none while the caller is busy, so
        that few are in memory. A sampler is given tasks once it has proved that it holds these weights; one that
        cannot is replaced. `flow` is told how long tasks wait, and when all samplers have the weights. Raises
        PoisonPrompt where a prompt kills its workers, UserError as samplers and scorers do.
        """
        flow = flow or Flow()
        self._fresh = (Job(task=task, number=number) for number, task in enumerate(tasks))
        self._to_sample, self._to_score, self._done, self._unfinished = deque(), deque(), deque(), 0
        try:
            self._take_ahead()
            while self._unfinished:
                self._assign(notice)
                done, _ = ray.wait([call for crew in self.crews for call in crew.calls()], timeout=POLL_S)
                for call in done:
                    self._settle(call, notice)
                waiting = {"to_sample": self._not_taken + len(self._to_sample), "to_score": len(self._to_score)}
                flow.note(is_synced=all(w.version == notice.version for w in self.samplers.workers), **waiting)
                for crew in self.crews:
                    crew.report_slow_starts()
                for job in [job for crew in self.crews for job in crew.expire(self.timeout_s)]:
                    self._count_death(job)
                while self._done:
                    yield self._done.popleft()
        finally:
            for worker in [worker for crew in self.crews for worker in crew.workers]:
                if isinstance(worker.job, Job):
                    worker.job.is_dropped = True

    def _take_ahead(self) -> None:
        job = None if self._to_sample else next(self._fresh, None)
        if job is not None:
            self._to_sample.append(job)
            self._unfinished += 1
            self._not_taken = max(0, self._not_taken - 1)

    def _finish(self, job: Job, scores: dict[str, Scores]) -> None:
        self._unfinished -= 1
        is_kept = self.scorers is None or self.keep_images or job.number == 0
        self._done.append(
            FinishedTask(
                number=job.number,
                prompt_ids=job.task.prompt_ids,
                images=job.images if is_kept else None,
                trajectories=job.trajectories,
                scores=scores,
                forward_images=job.forward_images,
            )
        )

    def _assign(self, notice: WeightsNotice) -> None:
        for worker in self.samplers.idle():
            if worker.version != notice.version:
                self.samplers.begin(worker, notice, worker.handle.load_weights.remote(notice))
            elif self._to_sample:
                job = self._to_sample.popleft()
                begin = getattr(worker.handle, self.method).options(num_returns=3)
                call, job.images, job.trajectories = begin.remote(notice, job.task)
                self.samplers.begin(worker, job, call)
                self._take_ahead()
        if self.scorers is None:
            return
        for worker in self.scorers.idle():
            if self._to_score:
                job = self._to_score.popleft()
                self.scorers.begin(worker, job, worker.handle.score.remote(job.task, job.images))

    def _settle(self, call: ray.ObjectRef, notice: WeightsNotice) -> None:
        crew = next(crew for crew in self.crews if crew.has(call))
        outcome = crew.end(call)
        job = outcome.job
        if isinstance(job, WeightsNotice):
            self._settle_weights(outcome)
        elif outcome.lost == "worker":
            self._count_death(job)
        elif job.is_dropped:
            return
        elif outcome.lost == "object":
            self.repeated += 1
            self._to_sample.appendleft(job)
        elif crew is self.samplers:
            self._settle_rollout(outcome, notice)
        elif not job.is_trial:
            check_rewards(outcome.result, job.task)
            self._finish(job, outcome.result)

    def _settle_weights(self, outcome: Outcome) -> None:
        """It may have been given the weights in an earlier run, whose notice it then answers."""
        notice: WeightsNotice = outcome.job
        if outcome.lost == "worker":
            return
        fault = "the weights were lost" if outcome.lost else find_fault(outcome.result, notice, self.canary_tolerance)
        if fault is None:
            outcome.worker.version, outcome.worker.refusals = notice.version, 0
            return
        outcome.worker.refusals += 1
        if outcome.worker.refusals >= MAX_REFUSALS:
            raise UserError(
                f"align: a sampler could not prove its weights {MAX_REFUSALS} times in a row: {fault}; give learner "
                "and samplers the same device and cluster.threads_*, or raise align.max_ratio_error"
            )
        self.samplers.replace(outcome.worker, "weights", fault)

    def _settle_rollout(self, outcome: Outcome, notice: WeightsNotice) -> None:
        job = outcome.job
        receipt: RolloutReceipt = outcome.result
        job.forward_images = receipt.forward_images
        if (receipt.version, receipt.checksum) != (notice.version, notice.checksum):
            self.samplers.replace(outcome.worker, "weights", f"sampled with version {receipt.version}")
            self._to_sample.appendleft(job)
        elif self.scorers is not None:
            self._to_score.append(job)
        elif not job.is_trial:
            self._finish(job, {})

    def _count_death(self, job: Any) -> None:
        """A worker was lost at this job: do it again, but if that happens repeatedly find out which prompt it is."""
        if not isinstance(job, Job) or job.is_dropped:
            return
        self.repeated += 1
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


def find_fault(ack: WeightsAck, notice: WeightsNotice, tolerance: float) -> str | None:
    """What is wrong with a sampler's acknowledgement; None where it proves the published weights."""
    if (ack.version, ack.checksum) != (notice.version, notice.checksum):
        return f"acknowledged version {ack.version} ({ack.checksum[:8]}), not {notice.version} ({notice.checksum[:8]})"
    if notice.canary is None:
        return None
    # Relative: a log-prob of some hundred nats is rounded more coarsely than one of a few.
    allowed = tolerance * max(1.0, abs(notice.canary))
    if ack.canary is None or not abs(ack.canary - notice.canary) <= allowed:
        return f"log-prob of the canary is {ack.canary}, the learner's {notice.canary}"
    return None


def check_rewards(verdicts: dict[str, Scores], task: RolloutTask) -> None:
    """UserError naming prompt and reward where a reward or its bound is not finite; it never counts as 0."""
    for name, part in verdicts.items():
        columns = [c for c in (part.reward, part.uncertainty, part.trust_weight) if c is not None]
        is_finite = torch.isfinite(torch.stack(columns)).all(0)
        if not bool(is_finite.all()):
            first = int((~is_finite).nonzero()[0, 0])
            prompt_id = task.prompt_ids[first // task.samples_per_prompt]
            value = float(part.reward[first])
            raise UserError(f"align: the reward of prompt {prompt_id} is {value} (reward {name}); update refused")
