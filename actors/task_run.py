"""The state of one run: tasks pass through samplers and scorers until all are finished, and lost work is repeated.

Noise depends on the task alone, so a repeated task gives the same images, whichever sampler runs it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import torch

from actors.messages import RolloutReceipt, RolloutTask, WeightsAck, WeightsNotice
from actors.worker_pool import Outcome, Worker, WorkerPool
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores

MAX_DEATHS = 2
"""Number of workers that may die at a task before its prompts are tried one by one."""
MAX_TRIALS = 3
"""Number of times that a task's prompts are tried one by one before the run ends."""
MAX_REFUSALS = 3
"""Replacements in a row of one sampler that cannot prove the weights before the run ends: another part is at fault."""

BeginSampling = Callable[[Any, WeightsNotice, RolloutTask], tuple[ray.ObjectRef, ray.ObjectRef, ray.ObjectRef]]
"""Starts a task on a sampler's handle; returns the references of receipt, images and trajectories."""


class PoisonPrompt(Exception):  # noqa: N818
    """A prompt kills its workers even when it is alone."""

    def __init__(self, prompt_id: str) -> None:
        super().__init__(prompt_id)
        self.prompt_id = prompt_id


@dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """The results of a task."""

    number: int
    """Place among the tasks of the run."""
    prompt_ids: tuple[str, ...]
    images: ray.ObjectRef | None
    """uint8 [B, 3, H, W] or PNG; None if they have been scored and dropped."""
    trajectories: ray.ObjectRef
    scores: dict[str, Scores]
    """Scores by reward; empty without scorers."""
    forward_images: int
    """Number of images that went through the network."""


@dataclass(kw_only=True)
class Job:
    """A task in progress."""

    task: RolloutTask
    number: int = 0
    """Place among the tasks of the run."""
    is_trial: bool = False
    """A single prompt, run to see whether it kills its worker; its results are dropped."""
    deaths: int = 0
    trials: int = 0
    images: ray.ObjectRef | None = None
    trajectories: ray.ObjectRef | None = None
    forward_images: int = 0


class TaskRun:
    """Queues and counts of one run. Callers assign and settle until `unfinished` is 0, and then set `is_over`."""

    def __init__(
        self,
        notice: WeightsNotice,
        tasks: Iterable[RolloutTask],
        samplers: WorkerPool,
        scorers: WorkerPool | None,
        *,
        begin_sampling: BeginSampling,
        probe_tolerance: float,
        keep_images: bool,
        count: int,
    ) -> None:
        """`count` is the number of tasks, or 0 if it is unknown; the first task is fetched."""
        self._notice, self._samplers, self._scorers = notice, samplers, scorers
        self._begin_sampling, self._probe_tolerance, self._keep_images = begin_sampling, probe_tolerance, keep_images
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
        self._prefetch()
        for worker in [worker for worker in samplers.idle if worker.version != notice.version]:
            self._load_weights(worker)

    @property
    def waiting(self) -> tuple[int, int]:
        """Numbers of tasks that wait for a sampler and for a scorer."""
        return self._not_fetched + len(self._to_sample), len(self._to_score)

    def assign(self) -> None:
        """Gives work to idle workers. Called after each settled call, so it looks at the newest idle sampler only."""
        idle = self._samplers.idle
        while idle:
            worker = next(reversed(idle))
            if worker.version != self._notice.version:
                self._load_weights(worker)
            elif self._to_sample:
                self._sample(worker, self._to_sample.popleft())
            else:
                break
        while self._scorers is not None and self._scorers.idle and self._to_score:
            worker, job = next(reversed(self._scorers.idle)), self._to_score.popleft()
            call = worker.handle.score.remote(job.task, job.images)
            self._scorers.begin(worker, call, partial(self._settle_scores, job))

    def _load_weights(self, worker: Worker) -> None:
        self._samplers.begin(worker, worker.handle.load_weights.remote(self._notice), self._settle_weights)

    def _sample(self, worker: Worker, job: Job) -> None:
        call, job.images, job.trajectories = self._begin_sampling(worker.handle, self._notice, job.task)
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
        fault = "the weights were lost" if lost else find_fault(ack, self._notice, self._probe_tolerance)
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
        job.forward_images = receipt.forward_images
        if (receipt.version, receipt.checksum) != (self._notice.version, self._notice.checksum):
            self._samplers.replace(outcome.worker, "weights", f"sampled with version {receipt.version}")
            self._to_sample.appendleft(job)
        elif self._scorers is not None:
            self._to_score.append(job)
        elif not job.is_trial:
            self._finish(job, {})

    def _settle_scores(self, job: Job, outcome: Outcome) -> None:
        if self._is_lost(job, outcome) or job.is_trial:
            return
        check_rewards(outcome.result, job.task)
        self._finish(job, outcome.result)

    def _finish(self, job: Job, scores: dict[str, Scores]) -> None:
        assert job.trajectories is not None
        self.unfinished -= 1
        is_kept = self._scorers is None or self._keep_images or job.number == 0
        self.done.append(
            FinishedTask(
                number=job.number,
                prompt_ids=job.task.prompt_ids,
                images=job.images if is_kept else None,
                trajectories=job.trajectories,
                scores=scores,
                forward_images=job.forward_images,
            )
        )

    def _is_lost(self, job: Job, outcome: Outcome) -> bool:
        """Returns whether there is no result to use; what a run in progress has lost is queued again."""
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


def find_fault(ack: WeightsAck, notice: WeightsNotice, tolerance: float) -> str | None:
    """Returns the fault of a sampler's acknowledgement; None if it proves the published weights."""
    if (ack.version, ack.checksum) != (notice.version, notice.checksum):
        return f"acknowledged version {ack.version} ({ack.checksum[:8]}), not {notice.version} ({notice.checksum[:8]})"
    if notice.probe is None:
        return None
    # Relative: a log-prob of some hundred nats is rounded more coarsely than one of a few.
    allowed = tolerance * max(1.0, abs(notice.probe))
    if ack.probe is None or not abs(ack.probe - notice.probe) <= allowed:
        return f"log-prob of the probe is {ack.probe}, the learner's {notice.probe}"
    return None


def check_rewards(scores: dict[str, Scores], task: RolloutTask) -> None:
    """Raises UserError with prompt and reward if a reward or its bound is not finite; such a reward never counts."""
    for name, part in scores.items():
        columns = [c for c in (part.reward, part.uncertainty, part.trust_weight) if c is not None]
        is_finite = torch.isfinite(torch.stack(columns)).all(0)
        if not bool(is_finite.all()):
            first = int((~is_finite).nonzero()[0, 0])
            prompt_id = task.prompt_ids[first // task.samples_per_prompt]
            value = float(part.reward[first])
            raise UserError(f"align: the reward of prompt {prompt_id} is {value} (reward {name}); update refused")
