"""The coordinator on learner rank 0: chooses prompts, has them sampled, scored and weighed, and shares them out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import ray
import torch

from actors.messages import BatchShare, RolloutTask, UpdateWork
from actors.pool.dispatch import Dispatcher
from actors.pool.quarantine import Quarantine
from actors.pool.queue_times import QueueTimes
from actors.pool.task_records import FinishedTask, PoisonPrompt
from actors.telemetry.incidents import Incidents
from actors.weight_sync import WeightsNotice
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.prompt_order import prompts_of_update
from rlhf.alignment.weighing import Weighed, weigh
from rlhf.config.run_config import RunConfig
from rlhf.data.buckets import batches_of_one_size
from rlhf.data.prompts import PromptTable
from rlhf.rewards.combination import load_scales, save_scales

TASKS_READ_AT_ONCE = 16
"""Number of tasks whose prompts are in memory together: a row group of the table is then read once for several."""


class Collector(Protocol):
    """Provides the work of an update for the learner."""

    def collect(self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None) -> UpdateWork:
        """Returns one rollout, scored, weighed and divided among the learner ranks.

        `weights` [on the CPU] are those to sample with; `probe` is the learner's log-prob of the probe,
        or None if samplers need not compute theirs. Raises UserError if there can be no rollout.
        """


@dataclass(frozen=True, kw_only=True)
class SamplingMetrics:
    """Metrics of sampling itself; a replay of dumped rollouts, which has no samplers, leaves them out."""

    images_per_s: float
    sampler_idle_share: float
    scorer_idle_share: float
    tasks_repeated: float
    weights_sync_s: float
    """Seconds until the last sampler had proved the weights."""
    queue_to_sample: float
    """Mean number of tasks that waited for a sampler."""
    queue_to_score: float
    """Mean number of tasks that waited for a scorer."""
    sampler_forward_images: float
    """Number of images that went through the samplers' networks, over all steps."""
    weights_bytes: float
    """Size of the weights that were published."""
    prompts_quarantined: float
    pixels_per_s: float
    """Pixels of the finished images over the time of the rollout."""
    sampler_memory_bytes: float
    """Most that one sampler has held so far: on its GPU, or resident where it has none."""
    scorer_memory_bytes: float
    """Most that one scorer has held so far, likewise."""
    sampler_device_flops: float
    """FLOP/s that a sampler's device can reach; the slowest sampler's."""


class Coordinator:
    """Collects updates in turn. Prompts and noise depend on (seed, update) and the quarantine, so no state is lost.

    The scales of several rewards are measured in update 0, written into the folder `out` and read from there
    afterwards; quarantined prompts are kept there too.
    """

    def __init__(
        self,
        config: RunConfig,
        prompts: PromptTable,
        dispatcher: Dispatcher,
        incidents: Incidents,
        *,
        ranks: int,
        out: Path,
    ) -> None:
        self.profile_update: int | None = None
        """Number of the update, from 1, in which samplers write traces."""
        self._config, self._prompts, self._dispatcher, self._ranks = config, prompts, dispatcher, ranks
        self._incidents, self._out, self._quarantine = incidents, out, Quarantine(out)
        self._groups = config.align.micro_batch_size // config.align.samples_per_prompt

    def collect(
        self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None, *, version: int | None = None
    ) -> UpdateWork:
        """Publishes the weights, rolls out, scores and weighs an update, and divides it among the learner ranks.

        `version` is the version of the weights, `update` by default. Raises UserError if a reward is not finite, or
        if too few prompts are outside the quarantine.
        """
        started, busy, times = time.perf_counter(), self._busy(), QueueTimes()
        repeated = self._dispatcher.repeated
        notice = WeightsNotice.publish(weights, update if version is None else version, probe)
        finished = self._roll_out_and_score(notice, update, times)
        weighed = self._weigh(finished, update)
        batches = to_batches(finished, weighed, self._config.align.samples_per_prompt)
        duration = time.perf_counter() - started
        receipts = [task.receipt for task in finished if task.receipt is not None]
        sampling = SamplingMetrics(
            images_per_s=len(weighed.advantages) / duration,
            tasks_repeated=self._dispatcher.repeated - repeated,
            sampler_forward_images=sum(task.forward_images for task in finished),
            weights_bytes=notice.size_bytes,
            prompts_quarantined=len(self._quarantine.reasons),
            pixels_per_s=self._count_pixels(finished) / duration,
            sampler_memory_bytes=max((r.memory_bytes for r in receipts), default=0),
            scorer_memory_bytes=max(task.scorer_memory_bytes for task in finished),
            sampler_device_flops=min((r.device_flops for r in receipts), default=0.0),
            **{f"{role}_idle_share": 1 - s / duration for role, s in self._busy(since=busy).items()},
            **times.metrics(),
        )
        metrics = weighed.metrics | self._incidents.metrics() | asdict(sampling)
        metrics |= {
            "rollout_s": duration,
            "policy_version": notice.version,
            "staleness": update - notice.version,
        }
        return UpdateWork(shares=share_out(batches, self._ranks), metrics=metrics, checksum=notice.checksum)

    def _roll_out_and_score(self, notice: WeightsNotice, update: int, times: QueueTimes) -> list[FinishedTask]:
        """Repeats the update with another prompt whenever one had to be quarantined."""
        while True:
            batches = self._choose(update)
            try:
                return self._dispatcher.run(notice, self._tasks(batches, update), times, count=len(batches))
            except PoisonPrompt as poison:
                self._quarantine.add(poison.prompt_id, "its workers died repeatedly, also when it was alone")

    def _choose(self, update: int) -> list[tuple[str, ...]]:
        """The prompts of an update in micro-batches of one size, each of `_groups` prompts or of fewer."""
        align, seed = self._config.align, self._config.seed
        chosen = prompts_of_update(self._prompts.ids, update, align.prompts_per_update, seed)
        chosen = self._quarantine.substitute(chosen, self._prompts.ids, key=(seed, 23, update))
        return batches_of_one_size(chosen, self._prompts.sizes, self._groups)

    def _tasks(self, batches: Sequence[tuple[str, ...]], update: int) -> Iterator[RolloutTask]:
        """Prompts travel with their tasks; those of several tasks are read from disk at once."""
        align, seed = self._config.align, self._config.seed
        plan = algorithm_of(align).plan_rollout(align, update, seed)
        for first in range(0, len(batches), TASKS_READ_AT_ONCE):
            read = batches[first : first + TASKS_READ_AT_ONCE]
            names = [name for own in read for name in own]
            rows = dict(zip(names, self._prompts.rows(names), strict=True))
            for number, own in enumerate(read, first):
                yield RolloutTask(
                    trace=self._trace_of(update, number),
                    prompt_ids=own,
                    prompts=[ray.put({name: rows[name] for name in own})],
                    samples_per_prompt=align.samples_per_prompt,
                    plan=plan,
                    seed_key=(seed, "align", update),
                )

    def _weigh(self, finished: Sequence[FinishedTask], update: int) -> Weighed:
        """Weighs with the scales of the run's first update, which are kept for a run that is resumed."""
        scales = load_scales(self._out) if self._config.rewards and update > 0 else None
        weighed = weigh([task.scores for task in finished], self._config, scales)
        if self._config.rewards and update == 0:
            save_scales(weighed.scales, self._out)
        return weighed

    def _count_pixels(self, finished: Sequence[FinishedTask]) -> int:
        sizes = [self._prompts.sizes[name] for task in finished for name in task.prompt_ids]
        return self._config.align.samples_per_prompt * sum(height * width for height, width in sizes)

    def _trace_of(self, update: int, task: int) -> tuple[Path, int, str] | None:
        """Returns where a task writes its trace: in the profiled update the tasks that first occupy the samplers do."""
        if update + 1 != self.profile_update or task >= self._config.cluster.samplers:
            return None
        return self._out, update + 1, f"sampler-{task}"

    def _busy(self, since: Mapping[str, float] | None = None) -> dict[str, float]:
        """Returns seconds in calls per worker, by role."""
        pools = self._dispatcher.pools
        return {p.role: p.busy_s / len(p.workers) - (since[p.role] if since else 0.0) for p in pools}


def to_batches(finished: Sequence[FinishedTask], weighed: Weighed, samples_per_prompt: int) -> list[BatchShare]:
    """Returns the micro-batches of an update, one for each finished task."""
    sizes = [len(task.prompt_ids) * samples_per_prompt for task in finished]
    columns = zip(finished, weighed.advantages.split(sizes), weighed.trust_weights.split(sizes), strict=True)
    return [
        BatchShare(
            trajectories=[task.trajectories],
            images=[] if task.images is None else [task.images],
            # Clones: a part of a tensor travels with all of it.
            advantages=advantages.clone(),
            trust_weights=trust_weights.clone(),
            prompt_ids=task.prompt_ids,
            scores=task.scores,
        )
        for task, advantages, trust_weights in columns
    ]


def share_out(batches: list[BatchShare], ranks: int) -> list[list[BatchShare]]:
    """Divides micro-batches into equally long shares, one per rank; the global batch stays as it is.

    The mean of the micro-batches' means, by weight, is the mean over all samples: a micro-batch weighs as many as it
    has. Copies of weight 0 fill up the last share.
    """
    per_rank = -(-len(batches) // ranks)
    padding = per_rank * ranks - len(batches)
    samples = sum(len(batch.advantages) for batch in batches)
    weighed = [replace(batch, weight=per_rank * ranks * len(batch.advantages) / samples) for batch in batches]
    weighed += [replace(batch, weight=0.0) for batch in weighed[:1] * padding]
    return [weighed[rank * per_rank : (rank + 1) * per_rank] for rank in range(ranks)]
