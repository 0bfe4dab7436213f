"""The coordinator that runs ahead: samplers work on the next updates while the learner trains on one.

It differs from `Coordinator.collect` in the age of the weights: they are up to `max_staleness` versions old. The
ratio corrects for that, since a rollout's log-probs are those of the weights that sampled it.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from actors.coordinator import Coordinator
from actors.messages import UpdateWork


class OverlappedCoordinator:
    """Collects one rollout at a time in a thread. The update alone decides which weights it samples with."""

    def __init__(self, coordinator: Coordinator, *, max_staleness: int, updates: int) -> None:
        self._coordinator, self._max_staleness, self._updates = coordinator, max_staleness, updates
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._begun: dict[int, Future[UpdateWork]] = {}
        self._next: int | None = None

    def collect(self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None) -> UpdateWork:
        """Returns the rollout of an update, begun up to `max_staleness` updates ago; begins those that may run ahead.

        Raises what `Coordinator.collect` raises.
        """
        last = min(update + self._max_staleness, self._updates - 1)
        for ahead in range(update if self._next is None else self._next, last + 1):
            self._begin(ahead, update, weights, probe)
        self._next = last + 1
        if update not in self._begun:  # Asked for again, since a node was lost that held some of it.
            self._begin(update, update, weights, probe)
        return self._begun.pop(update).result()

    def _begin(self, update: int, version: int, weights: dict[str, torch.Tensor], probe: float | None) -> None:
        collect = self._coordinator.collect
        self._begun[update] = self._thread.submit(collect, update, weights, probe, version=version)
