"""Processes that work on one thing together: who owns which picture, and how they learn of each other's errors."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rlhf.data.candidate_table import Key
from rlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Processes that train together: each describes the pictures of its own prompts, and sums join what they found."""

    rank: int = 0
    count: int = 1
    add: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    """Returns the sum of a tensor over all ranks; every rank calls it with the same shape."""
    device: torch.device = torch.device("cpu")
    """Device of a trained or described backbone that has weights."""

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raises a UserError of one rank in the block on all of them, which would otherwise wait for that rank."""
        text = np.zeros((self.count, LONGEST_MESSAGE), np.uint8)
        try:
            yield
        except UserError as error:
            words = str(error).encode()[:LONGEST_MESSAGE]
            text[self.rank, : len(words)] = np.frombuffer(words, np.uint8)
        for line in self.add(torch.from_numpy(text)).numpy():
            if line.any():
                raise UserError(bytes(line).rstrip(b"\0").decode(errors="replace"))

    def require_equal(self, number: int, message: str) -> None:
        """Raises UserError with the message on all ranks if they do not have the same number."""
        numbers = torch.zeros(self.count, dtype=torch.int64)
        numbers[self.rank] = number
        if len(set(self.add(numbers).tolist())) > 1:
            raise UserError(message)

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


LONGEST_MESSAGE = 2000
"""Bytes of an error that ranks tell each other."""
ALONE = Ranks()
