"""Cuts photographs into prompts: square crops with holes. All prompts of a photograph are in the same split."""

import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from PIL import Image

from rlhf.config.run_config import PromptsConfig
from rlhf.data.captions import read_captions
from rlhf.data.holes import draw_hole
from rlhf.data.rows import PromptRow
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.checksum import checksum
from rlhf.storage.decoding import read_header
from rlhf.storage.images import (
    decode_image,
    decode_mask,
    encode_png,
    image_to_tensor,
    list_photographs,
    mask_to_tensor,
    square_crop,
)
from rlhf.storage.indexed_table import IndexedTable
from rlhf.storage.tables import PROMPTS, ImageCell, image_cell, open_table, stream_table, write_table
from rlhf.storage.url_path import UrlPath


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
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, from the head of the mask."""
        header = read_header(self.encoded("mask"), name=f"{self._label}: mask")
        return header.height, header.width

    def encoded(self, column: str) -> bytes:
        """Returns the file of `image` or `mask`. Raises UserError if it holds no bytes."""
        return _bytes_of(self.table.cell(self.prompt_id, column), f"{self._label}: {column}")

    @property
    def _label(self) -> str:
        return f"{self.table.folder}: prompt {self.prompt_id}"


AnyPrompt = Prompt | StoredPrompt


class SkippedPhotograph(TypedDict):
    """An entry of `skipped.json`."""

    file: str
    reason: str


def make_prompts(
    images: Path,
    out: Path,
    config: PromptsConfig,
    *,
    seed: int,
    split: str | None = None,
    captions: Path | None = None,
) -> int:
    """Cuts prompts from every readable photograph below `images` into `out/prompts.parquet`.

    `out/skipped.json` lists unreadable photographs, whose number is told. `split` names the split of all prompts; by
    default a share `config.test_share` of the photographs is `test`. Captions are read by `read_captions` from the file
    `captions`, or from texts beside the photographs. Returns the number of prompts. Raises UserError if no photograph,
    or a caption not, is readable.
    """
    paths = list_photographs(images)
    if not paths:
        raise UserError(f"{images}: no photographs (PNG, JPEG, WebP, BMP, TIFF) there")
    texts = read_captions(images, [str(path.relative_to(images)) for path in paths], captions)
    skipped: list[SkippedPhotograph] = []
    if not isinstance(out, UrlPath):
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rlhf-", dir=None if isinstance(out, UrlPath) else out) as folder:
        # The splits are drawn among readable photographs, which are known only when all are cut.
        cut = Path(folder) / "prompts.parquet"
        with open_table(PROMPTS, cut) as append:
            for name, photograph in _open_photographs(images, paths, config, skipped):
                caption, source = texts.get(name, ""), images.resolve().name
                for row in _cut(photograph, name, source, split or "train", config, seed, caption):
                    append(row)
        _tell_skipped(skipped, len(paths), out)
        left_out = {line["file"] for line in skipped}
        names = [name for name in (str(path.relative_to(images)) for path in paths) if name not in left_out]
        if not names:
            raise UserError(f"{images}: none of {len(paths)} photographs is readable; see {out / 'skipped.json'}")
        tests = _choose_tests(names, config.test_share, seed) if split is None else set()
        rows = (row | ({"split": "test"} if row["photograph"] in tests else {}) for row in stream_table(cut, PROMPTS))
        write_table(rows, PROMPTS, out / "prompts.parquet")
    return len(names) * config.crops_per_photograph


def _tell_skipped(skipped: list[SkippedPhotograph], photographs: int, out: Path) -> None:
    reasons = out / "skipped.json"
    atomic_write_json(reasons, skipped)
    if skipped:
        print(f"prompts: {len(skipped)} of {photographs} photographs are left out; {reasons} says why", file=sys.stderr)


def _open_photographs(
    images: Path, paths: Sequence[Path], config: PromptsConfig, skipped: list[SkippedPhotograph]
) -> Iterator[tuple[str, Image.Image]]:
    """Yields name and photograph of each readable file; adds the others to `skipped`."""
    for path in progress_bar(paths, stage="prompts"):
        name = str(path.relative_to(images))
        try:
            photograph = decode_image(path)
            if min(photograph.size) < config.size_px // 2:
                raise UserError(f"{path}: {photograph.width}x{photograph.height} is too small for {config.size_px} px")
        except UserError as error:
            skipped.append({"file": name, "reason": str(error)})
        else:
            yield name, photograph


def _choose_tests(photographs: list[str], test_share: float, seed: int) -> set[str]:
    """Draws a share of the photographs for the split `test`; each split gets at least one of two or more."""
    names = sorted(photographs)
    tests = round(len(names) * test_share)
    if test_share > 0:
        tests = min(max(tests, 1), len(names) - 1)
    return {names[i] for i in np.random.default_rng([seed, 7]).permutation(len(names))[:tests]}


def _cut(
    photograph: Image.Image, name: str, source: str, split: str, config: PromptsConfig, seed: int, caption: str
) -> Iterator[PromptRow]:
    for index in range(config.crops_per_photograph):
        key = zlib.crc32(name.encode())
        rng = np.random.default_rng([seed, key, index])
        crop = square_crop(photograph, rng, size=config.size_px, scale=config.crop_scale)
        hole = config.holes[(key + index) % len(config.holes)]
        mask = draw_hole(hole, rng, config.size_px)
        prompt_id = f"{Path(name).with_suffix('').as_posix().replace('/', '_')}-{key:08x}-{index}"
        yield {
            "prompt_id": prompt_id,
            "image": image_cell(encode_png(crop), f"{prompt_id}.png"),
            "mask": image_cell(encode_png(Image.fromarray(mask.astype(np.uint8) * 255)), f"{prompt_id}_mask.png"),
            "hole": hole,
            "source": source,
            "photograph": name,
            "split": split,
            "caption": caption,
        }


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
