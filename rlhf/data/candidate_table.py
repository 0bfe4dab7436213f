"""Candidates of a folder by prompt and sample; their pictures are read and decoded when they are asked for."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from rlhf.data.prompts import AnyPrompt, StoredPrompt
from rlhf.errors import UserError
from rlhf.storage.images import decode_image, image_to_tensor
from rlhf.storage.indexed_table import IndexedTable
from rlhf.storage.tables import CANDIDATES

Key = tuple[str, int]
"""Prompt id and sample index of a candidate."""


class CandidateTable(Mapping[Key, torch.Tensor]):
    """Images float32 [3, H, W] in [-1, 1] of the candidates of some prompts, in the order of the table."""

    def __init__(self, folder: Path, prompts: Mapping[str, AnyPrompt]) -> None:
        """Reads the keys. Raises UserError if the table cannot be read, repeats a key, or has none of these prompts."""
        self._folder, self._prompts = folder, prompts
        self._table = IndexedTable(folder, CANDIDATES, ("prompt_id", "sample_index"))
        keys = zip(*(self._table.columns[name].to_pylist() for name in ("prompt_id", "sample_index")), strict=True)
        self._places: dict[Key, int] = {}
        for place, key in enumerate(keys):
            if key[0] in prompts and self._places.setdefault(key, place) != place:
                raise UserError(
                    f"{folder}: row {place} repeats {key[0]} sample {key[1]} of row {self._places[key]}; remove one"
                )
        if not self._places:
            raise UserError(f"{folder}: no candidate belongs to these prompts; check that both are of one run")

    def __getitem__(self, key: Key) -> torch.Tensor:
        """Decodes a candidate. Raises UserError with its name if it is unreadable, or not of its prompt's size."""
        label = self._label(key)
        image = image_to_tensor(decode_image(self._encoded(key), name=label))
        size = self._prompts[key[0]].size
        if tuple(image.shape[1:]) != size:
            raise UserError(f"{label}: is {tuple(image.shape[1:])}, its prompt {size}; make them anew")
        return image

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def digest(self, key: Key) -> bytes:
        """Returns the SHA-256 of the files of a candidate and of its mask; nothing is decoded."""
        prompt = self._prompts[key[0]]
        mask = prompt.encoded("mask") if isinstance(prompt, StoredPrompt) else prompt.mask.numpy().tobytes()
        return hashlib.sha256(hashlib.sha256(self._encoded(key)).digest() + mask).digest()

    def _encoded(self, key: Key) -> bytes:
        (row,) = self._table.take([self._places[key]], ["image"])
        if not row["image"] or not row["image"]["bytes"]:
            raise UserError(f"{self._label(key)}: image holds no bytes; write the table again")
        data: bytes = row["image"]["bytes"]
        return data

    def _label(self, key: Key) -> str:
        return f"{self._folder}: candidate {key[0]} sample {key[1]}"
