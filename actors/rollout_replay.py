"""Coordinators that write rollouts to a folder, and that read them from one in place of samplers and scorers."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import ray
import ray.exceptions
import torch

from actors.coordinator import share_out
from actors.incidents import Incidents
from actors.messages import BatchShare, UpdateWork
from rlhf.alignment.rollout_dump import DumpedBatch, RolloutDump
from rlhf.errors import UserError
from rlhf.storage.checksum import checksum

OF_THE_RUN_ITSELF = (
    "images_per_s",
    "sampler_idle_share",
    "scorer_idle_share",
    "tasks_repeated",
    "weights_sync_s",
    "queue_to_sample",
    "queue_to_score",
)
"""Figures of a dump, like its restarts, that a replay does not repeat: it has no samplers."""


class AnyCoordinator(Protocol):
    """Whoever has the work of an update for the learner."""

    def collect(self, update: int, weights: dict[str, torch.Tensor], canary: float | None = None) -> UpdateWork:
        """One rollout, scored and divided among the learner ranks; UserError where there can be none."""


class DumpingCoordinator:
    """Another coordinator, whose work is written down before it is trained on."""

    def __init__(self, coordinator: AnyCoordinator, dump: RolloutDump) -> None:
        self._coordinator, self._dump = coordinator, dump

    def collect(self, update: int, weights: dict[str, torch.Tensor], canary: float | None = None) -> UpdateWork:
        """As the other coordinator."""
        return collect_into(self._dump, update, partial(self._coordinator.collect, update, weights, canary))


class ReplayCoordinator:
    """Reads the work of every update from a dump, of a run with any number of ranks."""

    def __init__(self, dump: RolloutDump, incidents: Incidents, *, ranks: int) -> None:
        self._dump, self._incidents, self._ranks = dump, incidents, ranks

    def collect(self, update: int, weights: dict[str, torch.Tensor], canary: float | None = None) -> UpdateWork:
        """The dumped work of an update.

        Raises UserError where it is missing or damaged, or where the first update began with other weights than
        `weights`. Weights that drift away from the dump's later on are refused by the learner: its ratio is not 1.
        """
        started = time.perf_counter()
        dumped, about = self._dump.read(update)
        if update == 0 and about["checksum"] != checksum(weights):
            raise UserError("align: the dumped rollouts begin with other weights; give the --policy that they had")
        batches = [
            BatchShare(
                trajectories=[ray.put(batch.trajectories)],
                images=[ray.put(batch.images)] if number == 0 else [],
                advantages=batch.advantages,
                trust_weights=batch.trust_weights,
                prompt_ids=batch.prompt_ids,
                scores=batch.scores,
            )
            for number, batch in enumerate(dumped)
        ]
        kept = {n: v for n, v in about["metrics"].items() if n not in OF_THE_RUN_ITSELF and "restarts" not in n}
        metrics = kept | self._incidents.metrics() | {"rollout_s": time.perf_counter() - started}
        return UpdateWork(shares=share_out(batches, self._ranks), metrics=metrics, checksum=about["checksum"])


def collect_into(dump: RolloutDump, update: int, collect: Callable[[], UpdateWork]) -> UpdateWork:
    """The work of an update, which is then in the dump; collected again where a node was lost that held some of it."""
    while True:
        work = collect()
        about = {
            "update": update + 1,
            "policy_version": work.metrics["policy_version"],
            "checksum": work.checksum,
            "metrics": work.metrics,
        }
        try:
            dump.write(update, _batches_of(work), about)
        except ray.exceptions.ObjectLostError:
            continue
        return work


def _batches_of(work: UpdateWork) -> Iterator[DumpedBatch]:
    """In their order, whatever the ranks; without those that only fill up a rank."""
    for batch in [batch for share in work.shares for batch in share if batch.weight > 0]:
        yield DumpedBatch(
            prompt_ids=batch.prompt_ids,
            trajectories=ray.get(batch.trajectories[0]),
            images=ray.get(batch.images[0]),
            advantages=batch.advantages,
            trust_weights=batch.trust_weights,
            scores=batch.scores,
        )
