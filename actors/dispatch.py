"""The tasks of an update through samplers and scorers until all are done; what is lost on the way is done again.

Noise depends on the task alone, so that a task that is repeated, by whichever sampler, gives the same images.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch

from actors.crew import Crew, Outcome
from actors.messages import RolloutReceipt, RolloutTask, WeightsAck, WeightsNotice
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores

POLL_S = 5.0
MAX_DEATHS = 2
"""Workers that die at a task, until its prompts are tried one by one."""
MAX_TRIALS = 3
"""Times that a task's prompts are tried one by one, until the run ends."""


class PoisonPrompt(Exception):  # noqa: N818
    """A prompt that kills workers, also when it is alone."""

    def __init__(self, prompt_id: str) -> None:
        super().__init__(prompt_id)
        self.prompt_id = prompt_id


@dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """What came of a task."""

    trajectories: ray.ObjectRef
    scores: dict[str, Scores]


@dataclass(kw_only=True, eq=False)
class Job:
    """A task on its way; done when it has scores."""

    task: RolloutTask
    is_trial: bool = False
    """One prompt alone, to see whether it kills; its results are dropped."""
    deaths: int = 0
    trials: int = 0
    trajectories: ray.ObjectRef | None = None
    scores: dict[str, Scores] | None = None
    is_dropped: bool = False
    """Of a run that has ended; what comes of it is of no use."""


@dataclass(kw_only=True)
class Dispatcher:
    """Owns both crews; one run at a time."""

    samplers: Crew
    scorers: Crew
    timeout_s: float
    """For one call, a new worker's start included."""
    canary_tolerance: float = 1e-6
    repeated: int = 0
    """Tasks, or parts of them, that had to be done again so far."""
    _to_sample: deque[Job] = field(default_factory=deque)
    _to_score: deque[Job] = field(default_factory=deque)

    def run(self, notice: WeightsNotice, tasks: Sequence[RolloutTask]) -> list[FinishedTask]:
        """All tasks sampled with the weights of `notice`, and scored; in the order of `tasks`.

        A sampler is given tasks once it has proved that it holds these weights; one that cannot is replaced.
        Raises PoisonPrompt where a prompt kills its workers, UserError as samplers and scorers do.
        """
        jobs = [Job(task=task) for task in tasks]
        self._to_sample, self._to_score = deque(jobs), deque()
        try:
            while any(job.scores is None for job in jobs):
                self._assign(notice)
                calls = [*self.samplers.calls(), *self.scorers.calls()]
                done, _ = ray.wait(calls, num_returns=1, timeout=POLL_S)
                for call in done:
                    self._settle(call, notice)
                for job in [*self.samplers.expire(self.timeout_s), *self.scorers.expire(self.timeout_s)]:
                    self._count_death(job)
        finally:
            for crew in (self.samplers, self.scorers):
                for worker in crew.workers:
                    if isinstance(worker.job, Job):
                        worker.job.is_dropped = True
        return [FinishedTask(trajectories=job.trajectories, scores=job.scores or {}) for job in jobs]

    def _assign(self, notice: WeightsNotice) -> None:
        for worker in self.samplers.idle():
            if worker.version != notice.version:
                self.samplers.begin(worker, notice, worker.handle.load_weights.remote(notice))
            elif self._to_sample:
                job = self._to_sample.popleft()
                call, job.trajectories = worker.handle.rollout.options(num_returns=2).remote(notice, job.task)
                self.samplers.begin(worker, job, call)
        for worker in self.scorers.idle():
            if self._to_score:
                job = self._to_score.popleft()
                self.scorers.begin(worker, job, worker.handle.score.remote(job.task, job.trajectories))

    def _settle(self, call: ray.ObjectRef, notice: WeightsNotice) -> None:
        is_rollout = call in self.samplers.calls()
        outcome = (self.samplers if is_rollout else self.scorers).end(call)
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
        elif is_rollout:
            self._settle_rollout(outcome, notice)
        elif not job.is_trial:
            check_rewards(outcome.result, job.task)
            job.scores = outcome.result

    def _settle_weights(self, outcome: Outcome) -> None:
        """It may have been given the weights in an earlier run, whose notice it then answers."""
        notice: WeightsNotice = outcome.job
        if outcome.lost == "worker":
            return
        fault = "the weights were lost" if outcome.lost else find_fault(outcome.result, notice, self.canary_tolerance)
        if fault is None:
            outcome.worker.version = notice.version
        else:
            self.samplers.replace(outcome.worker, "weights", fault)

    def _settle_rollout(self, outcome: Outcome, notice: WeightsNotice) -> None:
        job = outcome.job
        receipt: RolloutReceipt = outcome.result
        if (receipt.version, receipt.checksum) == (notice.version, notice.checksum):
            self._to_score.append(job)
        else:
            self.samplers.replace(outcome.worker, "weights", f"sampled with version {receipt.version}")
            self._to_sample.appendleft(job)

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
                f"align: prompts {', '.join(job.task.prompt_ids)} together kill every worker, though none does alone; "
                "lower align.micro_batch_size, or see incidents.jsonl"
            )
        self._to_sample.append(job)
        tasks = [replace(job.task, prompt_ids=(name,)) for name in job.task.prompt_ids]
        self._to_sample.extendleft(Job(task=task, is_trial=True) for task in tasks)


def find_fault(ack: WeightsAck, notice: WeightsNotice, tolerance: float) -> str | None:
    """What is wrong with a sampler's acknowledgement; None where it proves the published weights."""
    if (ack.version, ack.checksum) != (notice.version, notice.checksum):
        return f"acknowledged version {ack.version} ({ack.checksum[:8]}), not {notice.version} ({notice.checksum[:8]})"
    if notice.canary is not None and (ack.canary is None or not abs(ack.canary - notice.canary) <= tolerance):
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
