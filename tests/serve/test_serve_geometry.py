"""Crops and tiles of the service, without Ray."""

import numpy as np
import pytest
from PIL import Image
from small_uploads import hole_in, mask_png, png, read_upload

from rlhf.diffusion.tiles import (
    LEAST_KNOWN,
    MAX_SHRINK,
    MAX_TILES,
    Canvas,
    crop_to_size,
    cut,
    fill,
    plan_passes,
    put_back,
    surround,
)

NATIVE = 64
SQUARE = (NATIVE, NATIVE)
SHAPES = [SQUARE, (32, 128), (96, 40)]


def _upload(hole: np.ndarray, seed: int = 0) -> Canvas:
    rgb = np.random.default_rng(seed).integers(0, 256, (*hole.shape, 3), dtype=np.uint8)
    return Canvas(rgb=rgb, rgba=np.dstack([rgb, np.full(hole.shape, 255, np.uint8)]), hole=hole)


@pytest.mark.parametrize("size", SHAPES)
def test_tiles_lie_within_the_photograph_and_every_pass_paints_the_whole_hole(size: tuple[int, int]):
    rng = np.random.default_rng(1)
    for _ in range(200):
        height, width = rng.integers(2, 300, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        hole = hole_in(height, width, top, left, rng.integers(top + 1, height + 1), rng.integers(left + 1, width + 1))
        passes = plan_passes(hole, size)
        sides = []
        for boxes in passes:
            painted = hole.copy()
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height
                stretch = (y1 - y0) / size[0] - (x1 - x0) / size[1]
                assert abs(stretch) <= 2 / min(size) or boxes == [(0, 0, width, height)]
                assert painted[y0:y1, x0:x1].any(), "no tile is painted for nothing"
                painted[y0:y1, x0:x1] = False
            assert not painted.any()
            sides.append(boxes[0][3] - boxes[0][1])
        assert sides == sorted(sides, reverse=True)
        assert sides[0] >= min(size[0], height, int(width * size[0] / size[1]))
        assert sides[-1] <= MAX_SHRINK * size[0] or passes == [[(0, 0, width, height)]]


def test_tiles_are_painted_from_the_known_pixels_outwards():
    hole = hole_in(64, 640, 0, 64, 64, 640)
    (boxes,) = plan_passes(hole, SQUARE)
    assert [box[0] for box in boxes] == list(range(32, 577, 32))
    known = ~hole
    for left, top, right, bottom in boxes:
        assert known[top:bottom, left:right].mean() >= LEAST_KNOWN
        known[top:bottom, left:right] = True


@pytest.mark.parametrize("shape", [(1, 3000), (2, 20_000)])
def test_a_photograph_as_thin_as_a_thread_takes_one_tile(shape: tuple[int, int]):
    hole = np.zeros(shape, bool)
    hole[0, 1:] = True
    assert plan_passes(hole, SQUARE) == [[(0, 0, shape[1], shape[0])]]


def test_a_hole_without_known_pixels_near_is_painted_nevertheless():
    hole = np.ones((200, 200), bool)
    hole[0, 0] = False
    assert sum(len(boxes) for boxes in plan_passes(hole, SQUARE)) > 1


def test_a_finer_pass_of_too_many_tiles_is_left_out():
    passes = plan_passes(hole_in(3000, 3000, 0, 0, 3000, 2999), SQUARE)
    assert all(len(boxes) <= 2 * MAX_TILES for boxes in passes)


def test_a_small_hole_is_shown_at_the_painted_size_unscaled():
    upload = _upload(hole_in(130, 200, 60, 90, 70, 100))
    ((box,),) = plan_passes(upload.hole, SQUARE)
    assert (box[2] - box[0], box[3] - box[1]) == (NATIVE, NATIVE)
    image, hole = crop_to_size(upload, box, SQUARE)
    assert np.array_equal(image, upload.rgb[box[1] : box[3], box[0] : box[2]])
    assert hole.sum() == 100


@pytest.mark.parametrize("shape", [(20, 30), (130, 200), (700, 500)])
def test_known_pixels_survive_exactly(shape: tuple[int, int]):
    height, width = shape
    upload = _upload(hole_in(height, width, height // 4, width // 4, height // 2, width // 2))
    pasted = np.asarray(_painted(upload, 7))
    assert np.array_equal(pasted[~upload.hole], upload.rgb[~upload.hole])
    assert (pasted[upload.hole] == 7).all()


def _painted(upload: Canvas, level: int) -> Image.Image:
    """All tiles filled with one colour."""
    boxes = plan_passes(upload.hole, SQUARE)[0]
    region = surround(boxes)
    part = cut(upload, region)
    for left, top, right, bottom in boxes:
        box = (left - region[0], top - region[1], right - region[0], bottom - region[1])
        part = fill(part, box, np.full((NATIVE, NATIVE, 3), level, np.uint8))
    assert not part.hole.any()
    return put_back(upload, region, part)


def test_transparency_of_known_pixels_survives_and_the_hole_is_opaque():
    hole = hole_in(80, 80, 10, 10, 30, 30)
    pixels = np.random.default_rng(2).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    upload = read_upload(png(pixels), mask_png(hole))
    pasted = np.asarray(_painted(upload, 0))
    assert np.array_equal(pasted[~hole], pixels[~hole])
    assert (pasted[hole] == [0, 0, 0, 255]).all()


def test_a_photograph_in_the_painted_shape_takes_one_tile_where_squares_would_take_several():
    """A hole of nearly the whole photograph, lying and standing."""
    for shape, size in (((400, 600), (64, 96)), ((600, 400), (96, 64))):
        hole = hole_in(*shape, 10, 10, shape[0] - 10, shape[1] - 10)
        assert plan_passes(hole, size)[0] == [(0, 0, shape[1], shape[0])]
        assert len(plan_passes(hole, SQUARE)[0]) > 1


def test_a_tile_is_scaled_to_the_painted_size_without_turning_it():
    upload = _upload(hole_in(120, 200, 40, 80, 60, 120))
    image, hole = crop_to_size(upload, (0, 0, 200, 80), (32, 80))
    assert (image.shape, hole.shape) == ((32, 80, 3), (32, 80))
    assert hole[16:24, 32:48].all()
    assert hole.sum() == 8 * 16


def test_what_the_hole_hides_does_not_tint_known_pixels():
    for side in (40, 200):
        hole = hole_in(side, side, side // 3, side // 3, side // 2, side // 2)
        rgb = np.full((side, side, 3), 100, np.uint8)
        rgb[hole] = 255
        upload = Canvas(rgb=rgb, rgba=np.dstack([rgb, np.full((side, side), 255, np.uint8)]), hole=hole)
        image, native_hole = crop_to_size(upload, (0, 0, side, side), SQUARE)
        rounding = 2
        assert np.abs(image[~native_hole].astype(int) - 100).max() <= rounding


def test_a_single_pixel_of_hole_survives_downscaling():
    hole = hole_in(1000, 1000, 500, 500, 501, 501)
    assert crop_to_size(_upload(hole), (0, 0, 1000, 1000), SQUARE)[1].sum() == 1
