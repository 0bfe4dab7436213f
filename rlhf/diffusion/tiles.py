"""Cuts a photograph of any size into tiles that a policy can paint, and puts the painted tiles back."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from rlhf.data.buckets import Size


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A photograph of any size with a hole, upright."""

    rgb: np.ndarray
    """uint8 [H, W, 3], transparency on white: the policy's input."""
    rgba: np.ndarray
    """uint8 [H, W, 4], as uploaded: the known pixels of the answer."""
    hole: np.ndarray
    """bool [H, W], True = repaint."""

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        height, width = self.hole.shape
        return height, width


Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom exclusive."""
MAX_SHRINK = 2
"""Largest tile, in sides of the size that is painted, whose painting is not refined in smaller tiles."""
MAX_TILES = 64
"""Most tiles of one pass; a finer pass over a hole that needs more is left out."""
LEAST_KNOWN = 0.5
"""Share of a tile that should be known before it is painted, if the hole allows it."""


def plan_passes(hole: np.ndarray, size: Size) -> list[list[Box]]:
    """Plans the tiles that paint a hole, pass by pass, in order: later tiles see the work of earlier ones.

    All have the shape of `size`, height and width in pixels, at which they are painted. The first pass sees most of the
    surroundings: one tile twice as high and wide as the hole, at least of that size, with the hole in its middle; if it
    does not fit, tiles as large as the photograph allows. While tiles are shrunk by more than MAX_SHRINK, another pass
    refines the painting in tiles of half the sides. Tiles of `size` from the start drift: colours change with the
    distance from the photograph. `hole` is bool [H, W] with at least one True.
    """
    height, width = hole.shape
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    high, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    tile = _largest_tile((high, wide), (height, width), size)
    if high < tile[0] and wide < tile[1]:
        left = _place(int(columns[0] + columns[-1] + 1), tile[1], width)
        top = _place(int(rows[0] + rows[-1] + 1), tile[0], height)
        passes = [[(left, top, left + tile[1], top + tile[0])]]
    elif _takes_too_many(hole, tile):
        return [[(0, 0, width, height)]]  # a very thin photograph is squeezed into one tile
    else:
        passes = [_plan_tiles(hole, tile)]
    while tile[0] > MAX_SHRINK * size[0]:
        tile = max(tile[0] // 2, size[0]), max(tile[1] // 2, size[1])
        if _takes_too_many(hole, tile):
            break
        passes.append(_plan_tiles(hole, tile))
    return passes


def _largest_tile(hole: Size, photograph: Size, size: Size) -> Size:
    """Twice the hole and at least `size`, of its shape, as far as the photograph has room."""
    wanted = max(1.0, *(2 * own / side for own, side in zip(hole, size, strict=True)))
    scale = min(wanted, *(own / side for own, side in zip(photograph, size, strict=True)))
    return max(1, round(scale * size[0])), max(1, round(scale * size[1]))


def _takes_too_many(hole: np.ndarray, tile: Size) -> bool:
    return bool(hole.sum() > MAX_TILES * (1 - LEAST_KNOWN) * tile[0] * tile[1])


def _place(doubled_centre: int, side: int, length: int) -> int:
    return min(max((doubled_centre - side) // 2, 0), length - side)


def _plan_tiles(hole: np.ndarray, tile: Size) -> list[Box]:
    """Tiles on a grid of half their sides: among well-known tiles the one that paints most, else the best-known one."""
    tops, lefts = (
        np.unique(np.r_[0 : n - side + 1 : max(side // 2, 1), n - side])
        for n, side in zip(hole.shape, tile, strict=True)
    )
    # Pixels are counted once, in cells between the edges of tiles; a tile is a block of whole cells.
    row_edges, column_edges = np.union1d(tops, tops + tile[0]), np.union1d(lefts, lefts + tile[1])
    cells = np.add.reduceat(hole, row_edges[:-1], axis=0, dtype=np.int64)
    cells = np.add.reduceat(cells, column_edges[:-1], axis=1)
    first_row, last_row = (np.searchsorted(row_edges, edge) for edge in (tops, tops + tile[0]))
    first_column, last_column = (np.searchsorted(column_edges, edge) for edge in (lefts, lefts + tile[1]))
    boxes: list[Box] = []
    while cells.any():
        table = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        rows = table[last_row] - table[first_row]
        unknown = (rows[:, last_column] - rows[:, first_column]) / (tile[0] * tile[1])
        paints = np.where(unknown <= 1 - LEAST_KNOWN, unknown, 0.0)
        best = paints if paints.any() else np.where(unknown > 0, -unknown, -np.inf)
        i, j = np.unravel_index(int(best.argmax()), best.shape)
        top, left = int(tops[i]), int(lefts[j])
        boxes.append((left, top, left + tile[1], top + tile[0]))
        cells[first_row[i] : last_row[i], first_column[j] : last_column[j]] = 0
    return boxes


def surround(boxes: list[Box]) -> Box:
    """The smallest box around all boxes."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def cut(canvas: Canvas, box: Box) -> Canvas:
    """A part of a photograph."""
    left, top, right, bottom = box
    parts = {name: getattr(canvas, name)[top:bottom, left:right] for name in ("rgb", "rgba", "hole")}
    return Canvas(**parts)


def crop_to_size(canvas: Canvas, box: Box, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [h, w, 3] and hole bool [h, w] of the box, scaled to `size`: h and w.

    A pixel belongs to the hole if it touches a pixel of the hole. Pixels of the hole have no weight in the resampling,
    so that their content does not tint known pixels.
    """
    part = cut(canvas, box)
    if part.hole.shape == size:
        return part.rgb, part.hole
    # Pillow weighs the colours of RGBA by their alpha; HAMMING has no negative lobes, so nothing overshoots.
    known = Image.fromarray(np.dstack([part.rgb, np.where(part.hole, 0, 255).astype(np.uint8)]))
    coverage = Image.fromarray(part.hole.astype(np.float32)).resize(size[::-1], Image.Resampling.BOX)
    image = known.resize(size[::-1], Image.Resampling.HAMMING)
    return np.asarray(image)[..., :3], np.asarray(coverage) > 1e-6


def fill(canvas: Canvas, box: Box, inpainted: np.ndarray) -> Canvas:
    """The photograph with the part of its hole in `box` filled from `inpainted`, uint8 [h, w, 3].

    Known pixels stay those of the canvas bit for bit, transparency included; filled pixels become opaque and known.
    """
    left, top, right, bottom = box
    scaled = Image.fromarray(inpainted)
    if scaled.size != (right - left, bottom - top):
        scaled = scaled.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    rgb, rgba, hole = canvas.rgb.copy(), canvas.rgba.copy(), canvas.hole.copy()
    inside = hole[top:bottom, left:right].copy()
    rgb[top:bottom, left:right][inside] = np.asarray(scaled)[inside]
    rgba[top:bottom, left:right, :3][inside] = np.asarray(scaled)[inside]
    rgba[top:bottom, left:right, 3][inside] = 255
    hole[top:bottom, left:right] = False
    return Canvas(rgb=rgb, rgba=rgba, hole=hole)


def put_back(canvas: Canvas, region: Box, painted: Canvas) -> Image.Image:
    """The whole photograph with `region` as painted; RGBA only if a pixel is transparent."""
    left, top, right, bottom = region
    pixels = canvas.rgba.copy()
    pixels[top:bottom, left:right] = painted.rgba
    return Image.fromarray(pixels if (pixels[..., 3] < 255).any() else pixels[..., :3])
