"""Output of a fixed backbone for pictures by key and augmentation; each of several workers holds its own pictures'."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rlhf.data.augmentation import PLAIN, Augmentation
from rlhf.data.candidate_table import Key


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Workers that train together: each describes the pictures of its own prompts, and sums join what they found."""

    rank: int = 0
    count: int = 1
    add: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    """Returns the sum of a tensor over all ranks; every rank calls it with the same shape."""
    device: torch.device = torch.device("cpu")
    """Device of a trained or described backbone that has weights."""

    def owns(self, key: Key) -> bool:
        """Returns whether this rank describes the picture; samples of a prompt belong to one rank."""
        return zlib.crc32(key[0].encode()) % self.count == self.rank

    def own(self, keys: Sequence[Key]) -> list[int]:
        """Returns the places of this rank's keys."""
        return [place for place, key in enumerate(keys) if self.owns(key)]

    def join(self, keys: Sequence[Key], own: torch.Tensor) -> torch.Tensor:
        """Returns the rows [N, D] of all `keys` on every rank; `own` are those of this rank's keys, in their order."""
        if self.count == 1:
            return own
        rows = own.new_zeros(len(keys), own.shape[1])
        rows[self.own(keys)] = own
        return self.add(rows)


ALONE = Ranks()


class Descriptions:
    """Rows [D] by augmentation and key: those of this rank's pictures, in the order of `keys`."""

    variants: Sequence[Augmentation] = ()
    """Augmentations that a training draws from."""

    def __init__(
        self, keys: Mapping[Augmentation, Sequence[Key]], rows: Mapping[Augmentation, torch.Tensor], ranks: Ranks
    ) -> None:
        self._places = {change: {key: place for place, key in enumerate(own)} for change, own in keys.items()}
        self._rows, self._ranks = rows, ranks

    def of(self, keys: Sequence[Key], changes: Sequence[Augmentation] | None = None) -> torch.Tensor:
        """Returns the rows [N, D] of `keys`, each under its augmentation; every rank calls it with the same keys.

        By default the pictures are as they are.
        """
        own = self._ranks.own(keys)
        of_change: dict[Augmentation, list[int]] = {}
        for number, place in enumerate(own):
            of_change.setdefault(PLAIN if changes is None else changes[place], []).append(number)
        rows = next(iter(self._rows.values())).new_empty(len(own), next(iter(self._rows.values())).shape[1])
        for change, numbers in of_change.items():
            places = self._places[change]
            rows[numbers] = self._rows[change][[places[keys[own[number]]] for number in numbers]]
        return self._ranks.join(keys, rows)
