"""Cuts photographs into prompts: crops with holes. All prompts of a photograph are in the same split."""

import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from rlhf.config.run_config import PromptsConfig
from rlhf.data.buckets import Size, list_buckets, nearest_bucket
from rlhf.data.captions import read_captions
from rlhf.data.holes import draw_hole
from rlhf.data.rows import PromptRow
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import decode_image, encode_png, list_photographs, random_crop
from rlhf.storage.tables import PROMPTS, image_cell, open_table, stream_table, write_table
from rlhf.storage.url_path import UrlPath


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
            height, width = _crop_size(photograph, config)
            if photograph.height < height // 2 or photograph.width < width // 2:
                needed = f"{config.size_px} px" if height == width else f"{width}x{height}"
                raise UserError(f"{path}: {photograph.width}x{photograph.height} is too small for {needed}")
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


def _crop_size(photograph: Image.Image, config: PromptsConfig) -> Size:
    if not config.buckets:
        return config.size_px, config.size_px
    return nearest_bucket((photograph.height, photograph.width), list_buckets(config.size_px, config.step_px))


def _cut(
    photograph: Image.Image, name: str, source: str, split: str, config: PromptsConfig, seed: int, caption: str
) -> Iterator[PromptRow]:
    size = _crop_size(photograph, config)
    for index in range(config.crops_per_photograph):
        key = zlib.crc32(name.encode())
        rng = np.random.default_rng([seed, key, index])
        crop = random_crop(photograph, rng, size=size, scale=config.crop_scale)
        hole = config.holes[(key + index) % len(config.holes)]
        mask = draw_hole(hole, rng, *size)
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
