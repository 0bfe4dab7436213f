"""Ranks of one training as threads of the test's process."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from rlhf.data.ranks import Ranks


class InTurns:
    """Ranks as threads of this process: one runs at a time, with its own random numbers, until it exchanges numbers."""

    def __init__(self, count: int) -> None:
        self._turn, self._count, self._changed = 0, count, threading.Condition()
        self._given: list[list[torch.Tensor]] = [[] for _ in range(count)]

    def run(self, work: Callable[[Ranks], Any]) -> list[Any]:
        results: list[Any] = [None] * self._count

        def begin(rank: int) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._turn == rank)
            try:
                results[rank] = work(Ranks(rank=rank, count=self._count, add=lambda own: self._add(rank, own)))
            finally:
                self._pass_on()

        threads = [threading.Thread(target=begin, args=(rank,), daemon=True) for rank in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    def _add(self, rank: int, own: torch.Tensor) -> torch.Tensor:
        state = torch.get_rng_state()
        self._given[rank].append(own)
        number = len(self._given[rank]) - 1
        self._pass_on()
        with self._changed:
            assert self._changed.wait_for(lambda: self._turn == rank, timeout=60)
        torch.set_rng_state(state)
        return torch.stack([given[number] for given in self._given]).sum(0, dtype=own.dtype)

    def _pass_on(self) -> None:
        with self._changed:
            self._turn = (self._turn + 1) % self._count
            self._changed.notify_all()
