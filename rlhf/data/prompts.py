"""Prompts: images with holes, decoded or in tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import pyarrow as pa
import torch

from rlhf.data.buckets import Size
from rlhf.data.rows import PromptRow
from rlhf.errors import UserError
from rlhf.storage.checksum import checksum
from rlhf.storage.decoding import read_header
from rlhf.storage.images import (
    decode_image,
    decode_mask,
    image_to_tensor,
    mask_to_tensor,
)
from rlhf.storage.indexed_table import IndexedTable
from rlhf.storage.tables import PROMPTS, ImageCell, stream_table


@dataclass(frozen=True, kw_only=True)
class PromptFacts:
    """What is known of a prompt besides its pictures."""

    prompt_id: str
    photograph: str
    """File of the photograph, the unit of splits and of clusters in statistics."""
    source: str
    hole: str
    split: str
    caption: str = ""
    """Description of the image, for networks and rewards that read text."""


@dataclass(frozen=True, kw_only=True)
class Prompt(PromptFacts):
    """An image with a hole, decoded."""

    image: torch.Tensor
    """float32 [3, H, W] in [-1, 1]: the original including the hole, which policies never see."""
    mask: torch.Tensor
    """float32 [1, H, W], 1 = repaint."""

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.mask.shape[-2], self.mask.shape[-1]


@dataclass(frozen=True, kw_only=True)
class StoredPrompt(PromptFacts):
    """A prompt of a table, whose pictures are read and decoded at every access."""

    table: "PromptTable" = field(repr=False, compare=False)

    @property
    def image(self) -> torch.Tensor:
        """The original, as `Prompt.image`."""
        return image_to_tensor(decode_image(self.encoded("image"), name=f"{self._label}: image"))

    @property
    def mask(self) -> torch.Tensor:
        """The mask, as `Prompt.mask`."""
        return mask_to_tensor(decode_mask(self.encoded("mask"), size=None, name=f"{self._label}: mask"))

    @property
    def size(self) -> Size:
        """Height and width in pixels, from the head of the mask."""
        return _size_of(self.encoded("mask"), f"{self._label}: mask")

    def encoded(self, column: str) -> bytes:
        """Returns the file of `image` or `mask`. Raises UserError if it holds no bytes."""
        return _bytes_of(self.table.cell(self.prompt_id, column), f"{self._label}: {column}")

    @property
    def _label(self) -> str:
        return f"{self.table.folder}: prompt {self.prompt_id}"


AnyPrompt = Prompt | StoredPrompt


def load_prompts(folder: Path, *, split: str | None = None) -> list[Prompt]:
    """Reads and decodes the prompts of one split, or of all.

    Raises UserError with file, row or column if something is unreadable, a mask does not fit its image, prompt ids
    repeat, or the split is empty.
    """
    table = PromptTable(folder, split=split)
    return [decode_prompt(row, str(folder)) for name in table for row in table.rows([name])]


class PromptTable(Mapping[str, StoredPrompt]):
    """The prompts of a split, or of all, by id in the order of the table; pictures are read on demand."""

    def __init__(self, folder: Path, *, split: str | None = None) -> None:
        """Reads all columns but the pictures. Raises UserError as `load_prompts` does, except for damaged pictures."""
        self.folder, self.split = folder, split
        facts = ("prompt_id", "photograph", "source", "hole", "split", "caption")
        self._table = IndexedTable(folder, PROMPTS, facts)
        self._places: dict[str, int] = {}
        self._facts: dict[str, PromptFacts] = {}
        rows = self._table.columns.to_pylist()
        for place, row in enumerate(rows):
            if split is not None and row["split"] != split:
                continue
            if row["prompt_id"] in self._places:
                raise UserError(f"{folder}: prompt_id is not unique; remove the repeated file or rows")
            self._places[row["prompt_id"]] = place
            self._facts[row["prompt_id"]] = PromptFacts(**row | {"caption": row["caption"] or ""})
        if not self._places:
            found = ", ".join(sorted({row["split"] for row in rows}))
            raise UserError(f"{folder}: no prompts of split {split!r}; it holds {found}")

    def __getitem__(self, prompt_id: str) -> StoredPrompt:
        return StoredPrompt(**vars(self._facts[prompt_id]), table=self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> list[str]:
        """Sorted ids of all prompts."""
        return sorted(self._places)

    @property
    def captions(self) -> dict[str, str]:
        """Captions by prompt id."""
        return {name: facts.caption for name, facts in self._facts.items()}

    @cached_property
    def sizes(self) -> dict[str, Size]:
        """Height and width of all prompts by id, from the heads of their masks. Raises UserError if one is damaged."""
        heads = pa.schema([PROMPTS.field(name) for name in ("prompt_id", "mask")])
        found = {}
        for row in stream_table(self.folder, heads):
            if (name := row["prompt_id"]) in self._places:
                label = f"{self.folder}: prompt {name}: mask"
                found[name] = _size_of(_bytes_of(row["mask"], label), label)
        return found

    def rows(self, prompt_ids: Sequence[str]) -> list[PromptRow]:
        """Returns the rows of these prompts, in this order."""
        return cast(list[PromptRow], self._table.take([self._places[name] for name in prompt_ids]))

    def cell(self, prompt_id: str, column: str) -> ImageCell | None:
        """Returns `image` or `mask` of a prompt, encoded."""
        (row,) = self._table.take([self._places[prompt_id]], [column])
        return cast(ImageCell | None, row[column])


def decode_prompt(row: PromptRow, place: str = "") -> Prompt:
    """Decodes a prompt from its row. Raises UserError with the table's `place` if image or mask is unreadable."""
    label = f"{place}: prompt {row['prompt_id']}" if place else f"prompt {row['prompt_id']}"
    image = decode_image(_bytes_of(row["image"], f"{label}: image"), name=f"{label}: image")
    mask = decode_mask(_bytes_of(row["mask"], f"{label}: mask"), size=image.size, name=f"{label}: mask")
    return Prompt(
        prompt_id=row["prompt_id"],
        photograph=row["photograph"],
        source=row["source"],
        hole=row["hole"],
        split=row["split"],
        image=image_to_tensor(image),
        mask=mask_to_tensor(mask),
        caption=row["caption"] or "",
    )


def _size_of(mask: bytes, label: str) -> Size:
    header = read_header(mask, name=label)
    return header.height, header.width


def _bytes_of(cell: ImageCell | None, label: str) -> bytes:
    if not cell or not cell["bytes"]:
        raise UserError(f"{label} holds no bytes; write the table again")
    return cell["bytes"]


def checksum_prompts(prompts: Sequence[Prompt]) -> str:
    """Returns the SHA-256 of all that affects judgements: ids, photographs, hole families, captions, images, masks."""
    names = {p.prompt_id: f"{p.prompt_id}\0{p.photograph}\0{p.hole}\0" for p in prompts}
    names |= {p.prompt_id: f"{names[p.prompt_id]}{p.caption}\0" for p in prompts if p.caption}
    pictures = {names[p.prompt_id] + "image": p.image for p in prompts}
    return checksum(pictures | {names[p.prompt_id] + "mask": p.mask for p in prompts})
