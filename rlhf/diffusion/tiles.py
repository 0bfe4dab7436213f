"""Cuts a photograph of any size into squares that a policy can paint, and puts the painted squares back."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A photograph of any size with a hole, upright."""

    rgb: np.ndarray
    """uint8 [H, W, 3], transparency on white: the policy's input."""
    rgba: np.ndarray
    """uint8 [H, W, 4], as uploaded: the known pixels of the answer."""
    hole: np.ndarray
    """bool [H, W], True = repaint."""


Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom exclusive."""
MAX_SHRINK = 2
"""Largest side of a square, in native sides, whose painting is not refined in smaller squares."""
MAX_TILES = 64
"""Most tiles of one pass; a finer pass over a hole that needs more is left out."""
LEAST_KNOWN = 0.5
"""Share of a tile that should be known before it is painted, if the hole allows it."""


def plan_passes(hole: np.ndarray, native_px: int) -> list[list[Box]]:
    """Plans the squares that paint a hole, pass by pass, in order: later squares see the work of earlier ones.

    The first pass sees most of the surroundings: one square of twice the hole's side, at least `native_px`, with the
    hole in its middle; if it does not fit, tiles of the photograph's short side. While squares are shrunk by more than
    MAX_SHRINK, another pass refines the painting in tiles of half the side. Tiles of native size from the start drift:
    colours change with the distance from the photograph. `hole` is bool [H, W] with at least one True.
    """
    height, width = hole.shape
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    longest = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
    side = min(max(2 * longest, native_px), height, width)
    if longest < side:
        left = _place(int(columns[0] + columns[-1] + 1), side, width)
        top = _place(int(rows[0] + rows[-1] + 1), side, height)
        passes = [[(left, top, left + side, top + side)]]
    elif hole.sum() > MAX_TILES * (1 - LEAST_KNOWN) * side**2:
        return [[(0, 0, width, height)]]  # a very thin photograph is squeezed into one square
    else:
        passes = [_plan_tiles(hole, side)]
    while side > MAX_SHRINK * native_px:
        side = max(side // 2, native_px)
        if hole.sum() > MAX_TILES * (1 - LEAST_KNOWN) * side**2:
            break
        passes.append(_plan_tiles(hole, side))
    return passes


def _place(doubled_centre: int, side: int, length: int) -> int:
    return min(max((doubled_centre - side) // 2, 0), length - side)


def _plan_tiles(hole: np.ndarray, side: int) -> list[Box]:
    """Tiles on a grid of half their side: among well-known tiles the one that paints most, else the best-known one."""
    tops, lefts = (np.unique(np.r_[0 : n - side + 1 : max(side // 2, 1), n - side]) for n in hole.shape)
    # Pixels are counted once, in cells between the edges of tiles; a tile is a block of whole cells.
    row_edges, column_edges = np.union1d(tops, tops + side), np.union1d(lefts, lefts + side)
    cells = np.add.reduceat(hole, row_edges[:-1], axis=0, dtype=np.int64)
    cells = np.add.reduceat(cells, column_edges[:-1], axis=1)
    first_row, last_row = (np.searchsorted(row_edges, edge) for edge in (tops, tops + side))
    first_column, last_column = (np.searchsorted(column_edges, edge) for edge in (lefts, lefts + side))
    boxes: list[Box] = []
    while cells.any():
        table = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        rows = table[last_row] - table[first_row]
        unknown = (rows[:, last_column] - rows[:, first_column]) / side**2
        paints = np.where(unknown <= 1 - LEAST_KNOWN, unknown, 0.0)
        best = paints if paints.any() else np.where(unknown > 0, -unknown, -np.inf)
        i, j = np.unravel_index(int(best.argmax()), best.shape)
        top, left = int(tops[i]), int(lefts[j])
        boxes.append((left, top, left + side, top + side))
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


def crop_to_native(canvas: Canvas, box: Box, native_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [native, native, 3] and hole bool [native, native] of the box.

    A native pixel belongs to the hole if it touches a pixel of the hole. Pixels of the hole have no weight in the
    resampling, so that their content does not tint known pixels.
    """
    part = cut(canvas, box)
    if part.hole.shape == (native_px, native_px):
        return part.rgb, part.hole
    size = (native_px, native_px)
    # Pillow weighs the colours of RGBA by their alpha; HAMMING has no negative lobes, so nothing overshoots.
    known = Image.fromarray(np.dstack([part.rgb, np.where(part.hole, 0, 255).astype(np.uint8)]))
    coverage = Image.fromarray(part.hole.astype(np.float32)).resize(size, Image.Resampling.BOX)
    image = known.resize(size, Image.Resampling.HAMMING)
    return np.asarray(image)[..., :3], np.asarray(coverage) > 1e-6


def fill(canvas: Canvas, box: Box, inpainted: np.ndarray) -> Canvas:
    """The photograph with the part of its hole in `box` filled from `inpainted`, uint8 [native, native, 3].

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
