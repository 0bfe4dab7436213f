"""Coordinators that write rollouts to a folder, or read them from one without samplers and scorers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial

import ray
import ray.exceptions
import torch

from actors.coordinator import Collector, SamplingMetrics, share_out
from actors.messages import BatchShare, UpdateWork
from actors.telemetry.incidents import Incidents
from rlhf.alignment.rollout_dump import DumpedBatch, RolloutDump
from rlhf.diffusion.trained_weights import as_array
from rlhf.errors import UserError
from rlhf.storage.checksum import checksum, quick_checksum


class DumpingCoordinator:
    """Writes the work of another coordinator to a dump before it is trained on."""

    def __init__(self, coordinator: Collector, dump: RolloutDump) -> None:
        self._coordinator, self._dump = coordinator, dump

    def collect(self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None) -> UpdateWork:
        """Returns the work of the other coordinator."""
        return collect_into(self._dump, update, partial(self._coordinator.collect, update, weights, probe))


class ReplayCoordinator:
    """Reads the work of every update from the dump of a run with any number of ranks."""

    def __init__(self, dump: RolloutDump, incidents: Incidents, *, ranks: int) -> None:
        self._dump, self._incidents, self._ranks = dump, incidents, ranks

    def collect(self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None) -> UpdateWork:
        """Returns the dumped work of an update.

        Raises UserError if it is missing or damaged, or if the first update began with other weights than `weights`.
        The learner refuses weights that drift away from the dump's later on: its ratio is then not 1.
        """
        started = time.perf_counter()
        dumped, about = self._dump.read(update)
        if update == 0 and not _is_checksum_of(weights, about["checksum"]):
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
        left_out = {field.name for field in fields(SamplingMetrics)}
        kept = {n: v for n, v in about["metrics"].items() if n not in left_out and "restarts" not in n}
        metrics = kept | self._incidents.metrics() | {"rollout_s": time.perf_counter() - started}
        return UpdateWork(shares=share_out(batches, self._ranks), metrics=metrics, checksum=about["checksum"])


def _is_checksum_of(weights: dict[str, torch.Tensor], noted: str) -> bool:
    if len(noted) == 64:  # Dumps of earlier releases note a SHA-256 of float32.
        return noted == checksum({name: tensor.float() for name, tensor in weights.items()})
    return noted == quick_checksum(weights, as_array)


def collect_into(dump: RolloutDump, update: int, collect: Callable[[], UpdateWork]) -> UpdateWork:
    """Returns the work of an update after dumping it; collects it again if a node was lost that held some of it."""
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
    """Yields micro-batches in their order, whatever the ranks, without those that only fill up a rank."""
    for batch in [batch for share in work.shares for batch in share if batch.weight > 0]:
        yield DumpedBatch(
            prompt_ids=batch.prompt_ids,
            trajectories=ray.get(batch.trajectories[0]),
            images=ray.get(batch.images[0]),
            advantages=batch.advantages,
            trust_weights=batch.trust_weights,
            scores=batch.scores,
        )
