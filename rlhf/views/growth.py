"""Extends a photograph beyond its borders step by step: plans the bands of each step and fills them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.diffusion.policy import Policy
from rlhf.diffusion.tile_painting import paint, to_canvas
from rlhf.diffusion.tiles import Box

SIDES = {"left": 0, "right": 2, "top": 1, "bottom": 3}
"""Sides in the order of painting, with their index in a Box; top and bottom include the width of left and right."""


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Pixels to add at each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def enlarge(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns width and height including the margins."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom


@dataclass(frozen=True, kw_only=True)
class Band:
    """Region that one step adds at one side. Boxes are in pixels of the extended photograph."""

    step: int
    """Number of the step, from 1."""
    side: str
    """Key of SIDES."""
    box: Box
    """Position of the band."""
    extent: Box
    """Extent of the photograph after the step, including the band."""


@dataclass(frozen=True, kw_only=True)
class PaintedBand:
    """The photograph after painting a band."""

    band: Band
    extended: np.ndarray
    """uint8 [H, W, 3], the photograph with all margins, 0 outside `band.extent`; the next band changes it in place."""
    known_pixels_differ: int
    """Number of pixels outside the band that the fill changed; these changes are discarded."""


Fill = Callable[[np.ndarray, np.ndarray, Band], np.ndarray]
"""Fills a hole: pixels uint8 [h, w, 3] of the band's extent, the hole bool [h, w], and the band; returns the pixels."""


def plan_bands(size: tuple[int, int], margins: Margins, steps: int) -> list[Band]:
    """Returns the bands of all steps in order; all sides end with the last step.

    `size` is the original width and height. A side with fewer pixels than steps has no band in some steps.
    """
    start = (margins.left, margins.top, margins.left + size[0], margins.top + size[1])
    extent, bands = list(start), []
    for step in range(1, steps + 1):
        for side, place in SIDES.items():
            grown = getattr(margins, side) * step // steps
            edge = start[place] + (grown if place > 1 else -grown)
            if edge == extent[place]:
                continue
            box = list(extent)
            box[(place + 2) % 4], box[place] = extent[place], edge
            extent[place] = edge
            bands.append(Band(step=step, side=side, box=_to_box(box), extent=_to_box(extent)))
    return bands


def _to_box(edges: Sequence[int]) -> Box:
    left, top, right, bottom = edges
    return left, top, right, bottom


def grow(photograph: np.ndarray, margins: Margins, bands: Sequence[Band], fill: Fill) -> Iterator[PaintedBand]:
    """Paints the bands around a photograph, uint8 [h, w, 3], in order; each fill sees the earlier bands."""
    height, width = photograph.shape[:2]
    wide, high = margins.enlarge((width, height))
    extended = np.zeros((high, wide, 3), np.uint8)
    extended[margins.top : margins.top + height, margins.left : margins.left + width] = photograph
    for band in bands:
        left, top, right, bottom = band.extent
        part = extended[top:bottom, left:right]
        hole = band_hole(band)
        filled = fill(part.copy(), hole, band)
        differing = int((filled != part).any(axis=2)[~hole].sum())
        part[hole] = filled[hole]
        yield PaintedBand(band=band, extended=extended, known_pixels_differ=differing)


def band_hole(band: Band) -> np.ndarray:
    """Returns the mask of the band within its extent, bool [h, w]."""
    left, top, right, bottom = band.extent
    hole = np.zeros((bottom - top, right - left), bool)
    hole[band.box[1] - top : band.box[3] - top, band.box[0] - left : band.box[2] - left] = True
    return hole


def fill_by_policy(
    policy: Policy, *, num_inference_steps: int, seed_key: tuple[object, ...], sample_index: int = 0
) -> Fill:
    """Returns a fill by a policy, tile by tile; noise depends on `seed_key`, band and sample, not on the policy."""

    def fill(pixels: np.ndarray, hole: np.ndarray, band: Band) -> np.ndarray:
        """Paints the hole with the policy."""
        (done,) = paint(
            policy,
            to_canvas(pixels, hole),
            sample_indices=(sample_index,),
            num_inference_steps=num_inference_steps,
            seed_key=(*seed_key, band.step, band.side),
        )
        return done.rgb

    return fill


def fill_by_padding(mode: str) -> Fill:
    """Returns a fill by numpy's padding: `edge` repeats the outermost pixels, `symmetric` mirrors the image."""

    def fill(pixels: np.ndarray, hole: np.ndarray, band: Band) -> np.ndarray:
        """Pads the known rectangle to the size of the extent."""
        rows, columns = (np.flatnonzero(~hole.all(axis=axis)) for axis in (1, 0))
        known = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        missing = [(ends[0], n - 1 - ends[-1]) for ends, n in zip((rows, columns), hole.shape, strict=True)]
        return np.pad(known, [*missing, (0, 0)], mode=mode)  # type: ignore[call-overload]

    return fill
