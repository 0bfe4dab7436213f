"""The order in which a hole of any size is painted, square by square, without a model: PyTorch is not needed."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rlhf.diffusion.tiles import Box, Canvas, crop_to_native, cut, fill, surround

REFINE_STRENGTH = 0.4
"""Share of the steps that a finer pass repeats over a coarser painting; chosen by eye on two photographs."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """One square to be painted, once per sample."""

    image: np.ndarray
    """uint8 [native, native, 3]."""
    hole: np.ndarray
    """bool [native, native], True = repaint."""
    sample_indices: tuple[int, ...]
    start: np.ndarray | None
    """uint8 [n, native, native, 3], a painting to refine with REFINE_STRENGTH; None paints from noise."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Squares that are painted at the same time: one place in the photograph, for all samples."""

    number: int
    """Position among all squares; each has noise of its own."""
    squares: list[Square]
    """One square for all samples while they are equal, else one per sample."""
    box: Box
    """Place of the square."""
    canvases: list[Canvas]
    """The samples before this turn."""
    is_last_pass: bool
    """Whether the finished image shows this painting."""

    def show(self, images: Sequence[np.ndarray]) -> list[Canvas]:
        """The samples with the square filled from `images`, uint8 [native, native, 3] each."""
        return [fill(before, self.box, image) for before, image in zip(self.canvases, images, strict=True)]


Turns = Generator[Turn, Sequence[np.ndarray], list[Canvas]]


def take_turns(canvas: Canvas, passes: list[list[Box]], sample_indices: tuple[int, ...], native_px: int) -> Turns:
    """Yields Turns, is sent their images (uint8 [native, native, 3], one per sample), returns the finished samples.

    Canvases show the part of the photograph inside `surround`. Samples share the first square; later squares of a
    sample see its own earlier ones. A finer pass starts from the photograph again.
    """
    region = surround([box for boxes in passes for box in boxes])
    part = cut(canvas, region)
    canvases, coarse, number = [part] * len(sample_indices), None, 0
    for boxes in passes:
        if number:
            coarse, canvases = [done.rgb for done in canvases], [part] * len(canvases)
        for left, top, right, bottom in boxes:
            box = left - region[0], top - region[1], right - region[0], bottom - region[1]
            squares = _squares(canvases, coarse, box, sample_indices, native_px, are_equal=number == 0)
            last = boxes is passes[-1]
            turn = Turn(number=number, squares=squares, box=box, canvases=canvases, is_last_pass=last)
            canvases = turn.show((yield turn))
            number += 1
    return canvases


def _squares(
    canvases: list[Canvas],
    coarse: list[np.ndarray] | None,
    box: Box,
    sample_indices: tuple[int, ...],
    native_px: int,
    *,
    are_equal: bool,
) -> list[Square]:
    if are_equal:
        image, hole = crop_to_native(canvases[0], box, native_px)
        return [Square(image=image, hole=hole, sample_indices=sample_indices, start=None)]
    squares = []
    for place, index in enumerate(sample_indices):
        image, hole = crop_to_native(canvases[place], box, native_px)
        start = None if coarse is None else _to_refine(canvases[place], box, coarse[place], native_px)[None]
        squares.append(Square(image=image, hole=hole, sample_indices=(index,), start=start))
    return squares


def _to_refine(canvas: Canvas, box: Box, coarse: np.ndarray, native_px: int) -> np.ndarray:
    """The known pixels of the square, with the coarser pass in its hole; uint8 [native, native, 3]."""
    left, top, right, bottom = box
    part = cut(canvas, box)
    pixels = np.where(part.hole[..., None], coarse[top:bottom, left:right], part.rgb)
    return np.asarray(Image.fromarray(pixels).resize((native_px, native_px), Image.Resampling.BOX))


def go_on(turns: Turns, images: Sequence[np.ndarray] | None) -> tuple[Turn | None, list[Canvas]]:
    """Sends `images` (None: begins); returns the next turn and the samples before it, or None and the finished ones."""
    try:
        turn = next(turns) if images is None else turns.send(images)
    except StopIteration as end:
        return None, end.value
    return turn, turn.canvases
