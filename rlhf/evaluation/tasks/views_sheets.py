"""Sheets of pictures of new views: the same holes filled by each filler, beside the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter

from rlhf.evaluation.tasks.stereo_pair import StereoPair
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.images import encode_png

CROP_PX = 144
"""Side of a crop of the motorcycle; at most half the short side of the picture."""
CROPS = 4
LABEL_PX = 14
GREY = 128


def draw_motorcycle(pair: StereoPair, pictures: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws the places with the largest holes behind objects: as warped, by every filler, and the true right view."""
    warped = np.where(pair.warped.hole[..., None], GREY, pair.warped.rgb).astype(np.uint8)
    columns = {"warped": warped, **pictures, "true right view": pair.truth}
    side = min(CROP_PX, min(warped.shape[:2]) // 2)
    rows = [
        [picture[top : top + side, left : left + side] for picture in columns.values()]
        for top, left in _choose_crops(pair.parts["behind"], side)
    ]
    _save_sheet(list(columns), rows, path)


def _choose_crops(part: np.ndarray, side: int) -> list[tuple[int, int]]:
    """Returns the corners of squares that do not overlap; squares with the largest area of `part` come first."""
    density = uniform_filter(part.astype(float), side, mode="constant")
    density[: side // 2] = density[-(side // 2) :] = 0
    density[:, : side // 2] = density[:, -(side // 2) :] = 0
    corners = []
    for _ in range(CROPS):
        row, column = np.unravel_index(int(density.argmax()), density.shape)
        if density[row, column] <= 0:
            break
        corners.append((int(row) - side // 2, int(column) - side // 2))
        density[max(0, row - side) : row + side, max(0, column - side) : column + side] = 0
    return corners


def draw_scene(renderings: Mapping[str, Sequence[np.ndarray]], path: Path) -> None:
    """Draws one row per held-out camera and one column per filler, with the truth last."""
    columns = {name: pictures for name, pictures in renderings.items() if name != "truth"}
    columns["truth"] = renderings["truth"]
    _save_sheet(list(columns), list(map(list, zip(*columns.values(), strict=True))), path)


def _save_sheet(names: Sequence[str], rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    height, width = rows[0][0].shape[:2] if rows else (1, 1)
    sheet = Image.new("RGB", (len(names) * (width + 2) - 2, LABEL_PX + len(rows) * (height + 2) - 2), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((column * (width + 2) + 2, 1), name, fill="black")
        for number, row in enumerate(rows):
            place = (column * (width + 2), LABEL_PX + number * (height + 2))
            sheet.paste(Image.fromarray(np.ascontiguousarray(row[column])), place)
    data = encode_png(sheet)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))
