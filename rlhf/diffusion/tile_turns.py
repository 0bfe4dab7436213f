"""The order in which a hole of any size is painted, tile by tile, without a model: PyTorch is not needed."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rlhf.data.buckets import Size
from rlhf.diffusion.tiles import Box, Canvas, crop_to_size, cut, fill, surround

REFINE_STRENGTH = 0.4
"""Share of the steps that a finer pass repeats over a coarser painting; chosen by eye on two photographs."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One tile to be painted, once per sample."""

    image: np.ndarray
    """uint8 [h, w, 3]."""
    hole: np.ndarray
    """bool [h, w], True = repaint."""
    sample_indices: tuple[int, ...]
    start: np.ndarray | None
    """uint8 [n, h, w, 3], a painting to refine with REFINE_STRENGTH; None paints from noise."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Tiles that are painted at the same time: one place in the photograph, for all samples."""

    number: int
    """Position among all tiles; each has noise of its own."""
    tiles: list[Tile]
    """One tile for all samples while they are equal, else one per sample."""
    box: Box
    """Place of the tiles."""
    canvases: list[Canvas]
    """The samples before this turn."""
    is_last_pass: bool
    """Whether the finished image shows this painting."""

    def show(self, images: Sequence[np.ndarray]) -> list[Canvas]:
        """The samples with the tile filled from `images`, uint8 [h, w, 3] each."""
        return [fill(before, self.box, image) for before, image in zip(self.canvases, images, strict=True)]


Turns = Generator[Turn, Sequence[np.ndarray], list[Canvas]]


def take_turns(canvas: Canvas, passes: list[list[Box]], sample_indices: tuple[int, ...], size: Size) -> Turns:
    """Yields Turns, is sent their images (uint8 [h, w, 3], one per sample), returns the finished samples.

    Tiles are painted at `size`. Canvases show the part of the photograph inside `surround`. Samples share the first
    tile; later tiles of a sample see its own earlier ones. A finer pass starts from the photograph again.
    """
    region = surround([box for boxes in passes for box in boxes])
    part = cut(canvas, region)
    canvases, coarse, number = [part] * len(sample_indices), None, 0
    for boxes in passes:
        if number:
            coarse, canvases = [done.rgb for done in canvases], [part] * len(canvases)
        for left, top, right, bottom in boxes:
            box = left - region[0], top - region[1], right - region[0], bottom - region[1]
            tiles = _tiles(canvases, coarse, box, sample_indices, size, are_equal=number == 0)
            last = boxes is passes[-1]
            turn = Turn(number=number, tiles=tiles, box=box, canvases=canvases, is_last_pass=last)
            canvases = turn.show((yield turn))
            number += 1
    return canvases


def _tiles(
    canvases: list[Canvas],
    coarse: list[np.ndarray] | None,
    box: Box,
    sample_indices: tuple[int, ...],
    size: Size,
    *,
    are_equal: bool,
) -> list[Tile]:
    if are_equal:
        image, hole = crop_to_size(canvases[0], box, size)
        return [Tile(image=image, hole=hole, sample_indices=sample_indices, start=None)]
    tiles = []
    for place, index in enumerate(sample_indices):
        image, hole = crop_to_size(canvases[place], box, size)
        start = None if coarse is None else _to_refine(canvases[place], box, coarse[place], size)[None]
        tiles.append(Tile(image=image, hole=hole, sample_indices=(index,), start=start))
    return tiles


def _to_refine(canvas: Canvas, box: Box, coarse: np.ndarray, size: Size) -> np.ndarray:
    """The known pixels of the tile, with the coarser pass in its hole; uint8 [h, w, 3]."""
    left, top, right, bottom = box
    part = cut(canvas, box)
    pixels = np.where(part.hole[..., None], coarse[top:bottom, left:right], part.rgb)
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BOX))


def go_on(turns: Turns, images: Sequence[np.ndarray] | None) -> tuple[Turn | None, list[Canvas]]:
    """Sends `images` (None: begins); returns the next turn and the samples before it, or None and the finished ones."""
    try:
        turn = next(turns) if images is None else turns.send(images)
    except StopIteration as end:
        return None, end.value
    return turn, turn.canvases
