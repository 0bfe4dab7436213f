"""This project's prompts, candidates and annotations to the layout in which PrefPaint's data were released.

The hole is painted over in white. A picture's score is the mean total of its annotations; ranks count from the
best of a prompt's pictures (1), in order of sample_index where scores are equal. Nothing else of the annotations
fits the layout: annotators, times and the three marks are lost, and so are hole family, source and split.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rlhf.data.annotators import load_annotations
from rlhf.data.prefpaint_layout import (
    IDS_NAME,
    LABELS_NAME,
    LeftOut,
    color_path,
    inpaint_path,
    is_file_name,
    mask_path,
)
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write, atomic_write_json, atomic_write_text
from rlhf.storage.images import decode_image, decode_mask, encode_png
from rlhf.storage.tables import CANDIDATES, PROMPTS, stream_table

PAINT = 255
"""The hole's value in `masks_color`."""

Key = tuple[str, int]


def export_release(prompts: Path, candidates: Path, annotations: Path, out: Path) -> dict[str, Any]:
    """Write the pictures that have an annotation, their prompts' masks, ids and labels below `out`.

    Pictures pass one at a time; ids and labels come last. Returns the numbers of ids and pictures, and
    what was left out by reason (also in `out/export.json`). Raises UserError where `out` already holds
    such an export, a prompt_id cannot be a file name, or no picture is left.
    """
    for name in ("masks", "masks_color", "inpaint", IDS_NAME, LABELS_NAME):
        if (out / name).exists():
            raise UserError(f"{out}: already holds {name}; choose another --out")
    left_out = LeftOut()
    scores = mean_scores(load_annotations(annotations))
    masks = _write_prompts(prompts, {prompt_id for prompt_id, _ in scores}, out, left_out)
    written = _write_pictures(candidates, masks, scores, out, left_out)
    if not written:
        raise UserError(f"{candidates}: no picture has a prompt and an annotation; check that all are of one run")
    for key in scores.keys() - written:
        left_out.add("scores without a picture", f"{key[0]}_{key[1]}")
    ids = sorted({prompt_id for prompt_id, _ in written})
    for prompt_id in sorted(masks.keys() - set(ids)):
        mask_path(out, prompt_id).unlink()
        color_path(out, prompt_id).unlink()
        left_out.add("prompts without a scored picture", prompt_id)
    labels = rank_scores({key: scores[key] for key in written})
    summary = {"ids": len(ids), "pictures": len(written), "left_out": left_out.record()}
    atomic_write_json(out / "export.json", summary)
    atomic_write_text(out / IDS_NAME, "".join(f"{prompt_id}\n" for prompt_id in ids))
    atomic_write_text(out / LABELS_NAME, json.dumps(labels, indent=0) + "\n")
    return summary


def mean_scores(rows: list[dict[str, Any]]) -> dict[Key, float]:
    """The mean total of each picture's annotations."""
    totals = defaultdict(list)
    for row in rows:
        totals[row["prompt_id"], row["sample_index"]].append(row["annotation_score"])
    return {key: float(np.mean(values)) for key, values in totals.items()}


def rank_scores(scores: dict[Key, float]) -> dict[str, list[float]]:
    """The labels: {"{id}_{k}": [score, rank]}, rank 1 the best of its id."""
    order = sorted(scores, key=lambda key: (key[0], -scores[key], key[1]))
    labels: dict[str, list[float]] = {}
    previous, rank = None, 0
    for key in order:
        rank = rank + 1 if key[0] == previous else 1
        previous = key[0]
        labels[f"{key[0]}_{key[1]}"] = [scores[key], rank]
    return labels


def _write_prompts(folder: Path, wanted: set[str], out: Path, left_out: LeftOut) -> dict[str, tuple[int, int]]:
    """Write masks and painted-over images of the wanted prompts; returns their widths and heights."""
    sizes: dict[str, tuple[int, int]] = {}
    for row in progress_bar(stream_table(folder, PROMPTS), stage="export: prompts"):
        prompt_id = row["prompt_id"]
        if prompt_id not in wanted:
            left_out.add("prompts without a scored picture", prompt_id)
            continue
        label = f"{folder}: prompt {prompt_id}"
        if not is_file_name(prompt_id):
            raise UserError(f"{label}: prompt_id cannot be part of a file name; rename it in all three tables")
        if prompt_id in sizes:
            raise UserError(f"{folder}: prompt_id {prompt_id} is not unique; remove the repeated file or rows")
        image = _decode(row["image"], f"{label}: image")
        mask = decode_mask((row["mask"] or {}).get("bytes") or b"", size=image.size, name=f"{label}: mask")
        painted = np.where(mask[:, :, None], np.uint8(PAINT), np.asarray(image))
        _write_png(Image.fromarray(mask.astype(np.uint8) * 255), mask_path(out, prompt_id))
        _write_png(Image.fromarray(painted), color_path(out, prompt_id))
        sizes[prompt_id] = image.size
    return sizes


def _write_pictures(
    folder: Path, sizes: dict[str, tuple[int, int]], scores: dict[Key, float], out: Path, left_out: LeftOut
) -> set[Key]:
    """Write the scored pictures of these prompts; returns their keys."""
    written: set[Key] = set()
    for row in progress_bar(stream_table(folder, CANDIDATES), stage="export: pictures"):
        key = row["prompt_id"], row["sample_index"]
        label = f"{folder}: candidate {key[0]} sample {key[1]}"
        if key[0] not in sizes:
            left_out.add("pictures without a prompt or a score", f"{key[0]}_{key[1]}")
        elif key not in scores:
            left_out.add("pictures without a score", f"{key[0]}_{key[1]}")
        else:
            picture = _decode(row["image"], label)
            if picture.size != sizes[key[0]]:
                raise UserError(f"{label}: is {picture.size}, its prompt {sizes[key[0]]}; write the candidates again")
            if key in written:
                raise UserError(f"{label}: is there twice; remove the repeated file or rows")
            _write_png(picture, inpaint_path(out, *key))
            written.add(key)
    return written


def _decode(cell: dict[str, Any] | None, label: str) -> Image.Image:
    return decode_image((cell or {}).get("bytes") or b"", name=label)


def _write_png(picture: Image.Image, path: Path) -> None:
    data = encode_png(picture)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))
