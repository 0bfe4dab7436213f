"""Cuts photographs into prompts: square crops with holes. All prompts of a photograph are in the same split."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from rlhf.storage.images import (
    decode_image,
    decode_mask,
    encode_png,
    image_to_tensor,
    list_photographs,
    mask_to_tensor,
    square_crop,
)
from rlhf.storage.tables import PROMPTS, image_cell, read_table, stream_table, take_rows, write_table


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """An image with a hole, decoded."""

    prompt_id: str
    photograph: str
    """File of the photograph, the unit of splits and of clusters in statistics."""
    source: str
    hole: str
    split: str
    image: torch.Tensor
    """float32 [3, H, W] in [-1, 1]: the original including the hole, which policies never see."""
    mask: torch.Tensor
    """float32 [1, H, W], 1 = repaint."""
    caption: str = ""
    """Description of the image, for networks and rewards that read text."""


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

    `out/skipped.json` lists unreadable photographs. `split` names the split of all prompts; by default a share
    `config.test_share` of the photographs is `test`. Captions are read by `read_captions` from the file `captions`, or
    from texts beside the photographs. Returns the number of prompts. Raises UserError if no photograph, or a caption
    not, is readable.
    """
    paths = list_photographs(images)
    if not paths:
        raise UserError(f"{images}: no photographs (PNG, JPEG, WebP, BMP, TIFF) there")
    texts = read_captions(images, [str(path.relative_to(images)) for path in paths], captions)
    rows: list[PromptRow] = []
    skipped: list[SkippedPhotograph] = []
    for path in progress_bar(paths, stage="prompts"):
        name = str(path.relative_to(images))
        try:
            photograph = decode_image(path)
            if min(photograph.size) < config.size_px // 2:
                raise UserError(f"{path}: {photograph.width}x{photograph.height} is too small for {config.size_px} px")
        except UserError as error:
            skipped.append({"file": name, "reason": str(error)})
            continue
        caption = texts.get(name, "")
        rows += _cut(photograph, name, images.resolve().name, split or "train", config, seed, caption)
    if split is None:
        _assign_splits(rows, config.test_share, seed)
    atomic_write_json(out / "skipped.json", skipped)
    if not rows:
        raise UserError(f"{images}: none of {len(paths)} photographs is readable; see {out / 'skipped.json'}")
    write_table(rows, PROMPTS, out / "prompts.parquet")
    return len(rows)


def _assign_splits(rows: list[PromptRow], test_share: float, seed: int) -> None:
    """Moves a share of the photographs to the split `test`; each split keeps at least one of two or more."""
    names = sorted({row["photograph"] for row in rows})
    tests = round(len(names) * test_share)
    if test_share > 0:
        tests = min(max(tests, 1), len(names) - 1)
    chosen = {names[i] for i in np.random.default_rng([seed, 7]).permutation(len(names))[:tests]}
    for row in rows:
        row["split"] = "test" if row["photograph"] in chosen else "train"


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
    rows = cast(list[PromptRow], read_table(folder, PROMPTS))
    prompts = [decode_prompt(row, str(folder)) for row in rows if split is None or row["split"] == split]
    if not prompts:
        found = ", ".join(sorted({row["split"] for row in rows}))
        raise UserError(f"{folder}: no prompts of split {split!r}; it holds {found}")
    if len({p.prompt_id for p in prompts}) < len(prompts):
        raise UserError(f"{folder}: prompt_id is not unique; remove the repeated file or rows")
    return prompts


class PromptTable:
    """The prompts of a split, read on demand, since memory may not hold all of them."""

    def __init__(self, folder: Path, *, split: str) -> None:
        """Checks every prompt once. Raises UserError as `load_prompts` does."""
        self._folder = folder
        self._places: dict[str, int] = {}
        self.captions: dict[str, str] = {}
        splits = set()
        rows = cast(Iterator[PromptRow], stream_table(folder, PROMPTS))
        for place, row in enumerate(progress_bar(rows, stage="prompts")):
            splits.add(row["split"])
            if row["split"] != split:
                continue
            prompt = decode_prompt(row, str(folder))
            if prompt.prompt_id in self._places:
                raise UserError(f"{folder}: prompt_id is not unique; remove the repeated file or rows")
            self._places[prompt.prompt_id] = place
            self.captions[prompt.prompt_id] = prompt.caption
        if not self._places:
            raise UserError(f"{folder}: no prompts of split {split!r}; it holds {', '.join(sorted(splits))}")

    @property
    def ids(self) -> list[str]:
        """Sorted ids of all prompts."""
        return sorted(self._places)

    def rows(self, prompt_ids: Sequence[str]) -> list[PromptRow]:
        """Returns the rows of these prompts, in this order."""
        found = take_rows(self._folder, PROMPTS, [self._places[name] for name in prompt_ids])
        return cast(list[PromptRow], found)


def decode_prompt(row: PromptRow, place: str = "") -> Prompt:
    """Decodes a prompt from its row. Raises UserError with the table's `place` if image or mask is unreadable."""
    label = f"{place}: prompt {row['prompt_id']}" if place else f"prompt {row['prompt_id']}"
    if not row["image"] or not row["image"]["bytes"] or not row["mask"] or not row["mask"]["bytes"]:
        raise UserError(f"{label}: image or mask holds no bytes")
    image = decode_image(row["image"]["bytes"], name=f"{label}: image")
    mask = decode_mask(row["mask"]["bytes"], size=image.size, name=f"{label}: mask")
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


def checksum_prompts(prompts: Sequence[Prompt]) -> str:
    """Returns the SHA-256 of all that affects judgements: ids, photographs, hole families, captions, images, masks."""
    names = {p.prompt_id: f"{p.prompt_id}\0{p.photograph}\0{p.hole}\0" for p in prompts}
    names |= {p.prompt_id: f"{names[p.prompt_id]}{p.caption}\0" for p in prompts if p.caption}
    pictures = {names[p.prompt_id] + "image": p.image for p in prompts}
    return checksum(pictures | {names[p.prompt_id] + "mask": p.mask for p in prompts})
