"""Pictures of annotated candidates and their masks, by key; those of tables are decoded when they are shown."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby

import torch

from rlhf.data.candidate_table import CandidateTable, Key
from rlhf.data.prompts import AnyPrompt

PIXELS_AT_ONCE = 2**20
"""Pixels of the pictures that are decoded and computed with at once: 256 of 64 px, 4 of 512 px."""


@dataclass(frozen=True)
class Pictures:
    """Candidates in [-1, 1] by prompt and sample, and the prompts with their masks."""

    prompts: Mapping[str, AnyPrompt]
    candidates: Mapping[Key, torch.Tensor]

    def show(self, keys: Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images [N, 3, H, W] and masks [N, 1, H, W] of keys of one size.

        Raises UserError if a picture is damaged.
        """
        masks = {prompt_id: self.prompts[prompt_id].mask for prompt_id in dict.fromkeys(key[0] for key in keys)}
        return torch.stack([self.candidates[key] for key in keys]), torch.stack([masks[key[0]] for key in keys])

    def stream(
        self, keys: Sequence[Key], pixels: int = PIXELS_AT_ONCE
    ) -> Iterator[tuple[list[Key], torch.Tensor, torch.Tensor]]:
        """Yields all keys with their images and masks, in batches of one size and in the order of the table.

        The next batch is decoded meanwhile.
        """
        with ThreadPoolExecutor(1) as reader:
            coming = None
            for batch in self.batches(self.in_order(keys), pixels):
                latest, coming = coming, (batch, reader.submit(self.show, batch))
                if latest is not None:
                    yield latest[0], *latest[1].result()
            if coming is not None:
                yield coming[0], *coming[1].result()

    def batches(self, keys: Sequence[Key], pixels: int = PIXELS_AT_ONCE) -> Iterator[list[Key]]:
        """Splits keys, in their order, into batches of one size with at most that many pixels, or one picture."""
        size_of = cache(lambda prompt_id: self.prompts[prompt_id].size)
        for (height, width), run in groupby(keys, key=lambda key: size_of(key[0])):
            same, count = list(run), max(1, pixels // (height * width))
            for start in range(0, len(same), count):
                yield same[start : start + count]

    def digests(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """Returns the SHA-256 of each picture and its mask; files are not decoded."""
        if isinstance(self.candidates, CandidateTable):
            table = self.candidates
            return {key: table.digest(key) for key in self.in_order(keys)}
        shown = {key: torch.cat([self.candidates[key], self.prompts[key[0]].mask]) for key in keys}
        return {key: hashlib.sha256(pixels.numpy().tobytes()).digest() for key, pixels in shown.items()}

    def in_order(self, keys: Iterable[Key]) -> list[Key]:
        """Returns the keys in the order of the table, in which neighbours are read together."""
        return sorted(keys, key=self._places.__getitem__)

    @cached_property
    def _places(self) -> dict[Key, int]:
        return {key: place for place, key in enumerate(self.candidates)}
