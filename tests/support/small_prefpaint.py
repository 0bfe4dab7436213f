"""A folder in the layout of PrefPaint's released data, with small random pictures."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_PX = 24
PICTURES = 3


def write_release(folder: Path, ids: tuple[str, ...] = ("ade20k_warp_a", "b_1", "c"), *, grouped: bool = False) -> Path:
    """Three pictures an id, scored 0, 1/3, ... in order of writing; every mask is a disc, in shades about 125."""
    rng = np.random.default_rng(0)
    for name in ("masks", "masks_color", "inpaint"):
        (folder / name).mkdir(parents=True)
    labels: dict[str, dict[str, list[float]]] = {}
    for number, image_id in enumerate(ids):
        image, mask = picture(rng), disc()
        shades = np.where(mask, rng.integers(125, 256, mask.shape), rng.integers(0, 125, mask.shape))
        Image.fromarray(shades.astype(np.uint8)).save(folder / "masks" / f"{image_id}_mask.png")
        painted = np.where(mask[:, :, None], np.uint8(250), image)
        Image.fromarray(painted).save(folder / "masks_color" / f"{image_id}_mask_color.png")
        labels[image_id] = {}
        for k in range(PICTURES):
            inpainted = np.where(mask[:, :, None], picture(rng), image)
            Image.fromarray(inpainted).save(folder / "inpaint" / f"{image_id}_{k}.png")
            labels[image_id][f"{image_id}_{k}"] = [(number * PICTURES + k) / 3, PICTURES - k]
    (folder / "train.txt").write_text("".join(f"{i}\n" for i in ids))
    flat = {name: label for group in labels.values() for name, label in group.items()}
    (folder / "labels.json").write_text(json.dumps(labels if grouped else flat))
    return folder


def picture(rng: np.random.Generator) -> np.ndarray:
    """uint8 [SIZE_PX, SIZE_PX, 3], each pixel by chance."""
    return rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def disc() -> np.ndarray:
    """bool [SIZE_PX, SIZE_PX], True within a disc."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX]
    return (x - 12) ** 2 + (y - 10) ** 2 < 40


def labels_of(folder: Path) -> dict[str, list[float]]:
    """The flat labels of a folder."""
    return json.loads((folder / "labels.json").read_text())


def write_labels(folder: Path, labels: object) -> None:
    """Replace the labels."""
    (folder / "labels.json").write_text(json.dumps(labels))
