"""Uploads and crops of the service, without Ray."""

import io

import numpy as np
import pytest
from PIL import Image

from rlhf.tiles import (
    LEAST_KNOWN,
    MAX_SHRINK,
    MAX_TILES,
    Canvas,
    crop_to_native,
    cut,
    fill,
    plan_passes,
    put_back,
    surround,
)
from serve.api_errors import ApiError
from serve.uploads import count_pixels, read_upload

NATIVE = 64


def _png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def _hole(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    hole[top:bottom, left:right] = True
    return hole


def _upload(hole: np.ndarray, seed: int = 0) -> Canvas:
    rgb = np.random.default_rng(seed).integers(0, 256, (*hole.shape, 3), dtype=np.uint8)
    return Canvas(rgb=rgb, rgba=np.dstack([rgb, np.full(hole.shape, 255, np.uint8)]), hole=hole)


def _mask(hole: np.ndarray) -> bytes:
    alpha = np.where(hole, 0, 255).astype(np.uint8)
    return _png(np.dstack([np.zeros((*hole.shape, 3), np.uint8), alpha]))


def test_squares_lie_within_the_photograph_and_every_pass_paints_the_whole_hole():
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = rng.integers(2, 300, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        hole = _hole(height, width, top, left, rng.integers(top + 1, height + 1), rng.integers(left + 1, width + 1))
        passes = plan_passes(hole, NATIVE)
        sides = []
        for boxes in passes:
            painted = hole.copy()
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height
                assert x1 - x0 == y1 - y0 or boxes == [(0, 0, width, height)]
                assert painted[y0:y1, x0:x1].any(), "no tile is painted for nothing"
                painted[y0:y1, x0:x1] = False
            assert not painted.any()
            sides.append(boxes[0][2] - boxes[0][0])
        assert sides == sorted(sides, reverse=True)
        assert sides[0] >= min(NATIVE, height, width)
        assert sides[-1] <= max(MAX_SHRINK * NATIVE, 1) or passes == [[(0, 0, width, height)]]


def test_tiles_are_painted_from_the_known_pixels_outwards():
    hole = _hole(64, 640, 0, 64, 64, 640)
    (boxes,) = plan_passes(hole, NATIVE)
    assert [box[0] for box in boxes] == list(range(32, 577, 32))
    known = ~hole
    for left, top, right, bottom in boxes:
        assert known[top:bottom, left:right].mean() >= LEAST_KNOWN
        known[top:bottom, left:right] = True


@pytest.mark.parametrize("shape", [(1, 3000), (2, 20_000)])
def test_a_photograph_as_thin_as_a_thread_takes_one_square(shape: tuple[int, int]):
    hole = np.zeros(shape, bool)
    hole[0, 1:] = True
    assert plan_passes(hole, NATIVE) == [[(0, 0, shape[1], shape[0])]]


def test_a_hole_without_known_pixels_near_is_painted_nevertheless():
    hole = np.ones((200, 200), bool)
    hole[0, 0] = False
    assert sum(len(boxes) for boxes in plan_passes(hole, NATIVE)) > 1


def test_a_finer_pass_of_too_many_tiles_is_left_out():
    passes = plan_passes(_hole(3000, 3000, 0, 0, 3000, 2999), NATIVE)
    assert all(len(boxes) <= 2 * MAX_TILES for boxes in passes)


def test_small_hole_is_shown_at_native_size_unscaled():
    upload = _upload(_hole(130, 200, 60, 90, 70, 100))
    ((box,),) = plan_passes(upload.hole, NATIVE)
    assert (box[2] - box[0], box[3] - box[1]) == (NATIVE, NATIVE)
    image, hole = crop_to_native(upload, box, NATIVE)
    assert np.array_equal(image, upload.rgb[box[1] : box[3], box[0] : box[2]])
    assert hole.sum() == 100


@pytest.mark.parametrize("shape", [(20, 30), (130, 200), (700, 500)])
def test_known_pixels_survive_exactly(shape: tuple[int, int]):
    height, width = shape
    upload = _upload(_hole(height, width, height // 4, width // 4, height // 2, width // 2))
    pasted = np.asarray(_painted(upload, 7))
    assert np.array_equal(pasted[~upload.hole], upload.rgb[~upload.hole])
    assert (pasted[upload.hole] == 7).all()


def _painted(upload: Canvas, level: int) -> Image.Image:
    """All squares filled with one colour."""
    boxes = plan_passes(upload.hole, NATIVE)[0]
    region = surround(boxes)
    part = cut(upload, region)
    for left, top, right, bottom in boxes:
        box = (left - region[0], top - region[1], right - region[0], bottom - region[1])
        part = fill(part, box, np.full((NATIVE, NATIVE, 3), level, np.uint8))
    assert not part.hole.any()
    return put_back(upload, region, part)


def test_transparency_of_known_pixels_survives_and_the_hole_is_opaque():
    hole = _hole(80, 80, 10, 10, 30, 30)
    pixels = np.random.default_rng(2).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    upload = read_upload(_png(pixels), _mask(hole))
    pasted = np.asarray(_painted(upload, 0))
    assert np.array_equal(pasted[~hole], pixels[~hole])
    assert (pasted[hole] == [0, 0, 0, 255]).all()


def test_what_the_hole_hides_does_not_tint_known_pixels():
    for side in (40, 200):
        hole = _hole(side, side, side // 3, side // 3, side // 2, side // 2)
        rgb = np.full((side, side, 3), 100, np.uint8)
        rgb[hole] = 255
        upload = Canvas(rgb=rgb, rgba=np.dstack([rgb, np.full((side, side), 255, np.uint8)]), hole=hole)
        image, native_hole = crop_to_native(upload, (0, 0, side, side), NATIVE)
        rounding = 2
        assert np.abs(image[~native_hole].astype(int) - 100).max() <= rounding


def test_a_single_pixel_of_hole_survives_downscaling():
    hole = _hole(1000, 1000, 500, 500, 501, 501)
    assert crop_to_native(_upload(hole), (0, 0, 1000, 1000), NATIVE)[1].sum() == 1


def test_alpha_below_128_is_the_hole():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[0, 0, 3], pixels[0, 1, 3] = 127, 128
    assert np.argwhere(read_upload(_png(pixels), None).hole).tolist() == [[0, 0]]


def test_photographs_and_masks_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.full((4, 8, 4), 255, np.uint8)
    pixels[0, 0, 3] = 0
    upload = read_upload(_png(pixels, exif=exif), None)
    assert upload.rgb.shape == (8, 4, 3)
    assert np.argwhere(upload.hole).tolist() == [[0, 3]]


def test_palette_and_grey_images_are_read():
    hole = _hole(8, 8, 2, 2, 4, 4)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(read_upload(_png(grey), _mask(hole)).rgb[..., 0], grey)
    palette = Image.fromarray(np.where(hole, 1, 0).astype(np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG", transparency=1)
    assert np.array_equal(read_upload(buffer.getvalue(), None).hole, hole)


OPAQUE = np.full((8, 8, 4), 255, np.uint8)
BAD_UPLOADS = {
    "no image": (b"nonsense", None, "image"),
    "empty": (b"", None, "image"),
    "truncated": (_png(np.zeros((64, 64, 3), np.uint8))[:60], None, "image"),
    "no transparency": (_png(OPAQUE[..., :3]), None, "image"),
    "all opaque": (_png(OPAQUE), None, "image"),
    "all transparent": (_png(np.zeros((8, 8, 4), np.uint8)), None, "image"),
    "black and white mask": (_png(OPAQUE), _png(OPAQUE[..., 0]), "mask"),
    "mask of another size": (_png(OPAQUE), _mask(_hole(9, 8, 0, 0, 2, 2)), "mask"),
    "mask is no image": (_png(OPAQUE), b"nonsense", "mask"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_bad_uploads_are_refused_by_field(name: str):
    image, mask, param = BAD_UPLOADS[name]
    with pytest.raises(ApiError, match=param) as caught:
        read_upload(image, mask)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_uploads_beyond_25_megabytes_are_413():
    with pytest.raises(ApiError) as caught:
        read_upload(b"x" * 25_000_001, None)
    assert (caught.value.status, caught.value.code) == (413, "image_too_large")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_are_refused_or_read_and_never_fail_otherwise(file_format: str):
    rng = np.random.default_rng(5)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(buffer, format=file_format)
    whole, mask = np.frombuffer(buffer.getvalue(), np.uint8), _mask(_hole(24, 30, 4, 4, 9, 9))
    refused = []
    for _ in range(170):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        places = rng.integers(0, len(damaged), rng.integers(1, 12))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            read_upload(damaged.tobytes(), mask)
        except ApiError as error:
            refused.append(error.param)
    assert set(refused) == {"image"}
    assert len(refused) > 20


def test_an_extension_is_a_hole_around_the_photograph_and_needs_no_mask():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    upload = read_upload(_png(pixels), None, expand=(3, 0, 0, 5))
    assert upload.hole.shape == (25, 33)
    assert not upload.hole[:20, 3:].any()
    assert upload.hole[:, :3].all()
    assert upload.hole[20:].all()
    assert np.array_equal(upload.rgb[:20, 3:], pixels)
    with pytest.raises(ApiError, match="megapixels"):
        read_upload(_png(np.zeros((5000, 1, 3), np.uint8)), None, expand=(4096, 4096, 4096 * 2, 4096))


def test_a_white_mask_is_what_is_painted_white_also_on_nothing():
    pixels, hole = np.zeros((20, 30, 3), np.uint8), _hole(20, 30, 4, 4, 9, 9)
    white = np.where(hole, 255, 0).astype(np.uint8)
    strokes = np.dstack([np.full((20, 30, 3), 255, np.uint8), white])
    for mask in (white, np.dstack([white] * 3), strokes):
        assert np.array_equal(read_upload(_png(pixels), _png(mask), convention="white").hole, hole)


def _saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def test_all_depths_and_colour_spaces_are_read_as_8_bit_rgb():
    hole, rng = _hole(24, 30, 4, 4, 9, 9), np.random.default_rng(3)
    deep = Image.fromarray(rng.integers(0, 65536, (24, 30), dtype=np.uint16))
    colour = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    files = [
        _saved(deep, "PNG"),
        _saved(colour.convert("CMYK"), "JPEG"),
        _saved(colour.convert("P"), "GIF"),
        _saved(colour.convert("L"), "JPEG"),
        _saved(colour.convert("1"), "PNG"),
        _saved(colour.convert("LA"), "PNG"),
        _saved(colour, "TIFF"),
    ]
    for data in files:
        upload = read_upload(data, _mask(hole))
        assert upload.rgb.shape == (24, 30, 3)
        assert upload.rgb.std() > 5, "not blank"
        assert np.array_equal(upload.hole, hole)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_files_are_refused(file_format: str):
    frames = [Image.new("RGB", (30, 24), colour) for colour in ("red", "green", "blue")]
    with pytest.raises(ApiError, match="several pictures"):
        read_upload(_saved(frames[0], file_format, save_all=True, append_images=frames[1:]), None)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_file_that_is_an_image_and_something_else_is_refused(file_format: str):
    hole = _hole(24, 30, 4, 4, 9, 9)
    pixels = np.random.default_rng(3).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    whole = _saved(Image.fromarray(pixels), file_format)
    assert read_upload(whole + b"\0" * 50, _mask(hole)).hole.shape == (24, 30)
    for other in (
        b"PK\x03\x04" + b"\0" * 99 + b"x",
        b"<html><script>alert(1)</script>",
        b"%PDF-1.7",
        bytes(range(256)),
    ):
        with pytest.raises(ApiError, match="another one follows"):
            read_upload(whole + other, _mask(hole))
        with pytest.raises(ApiError):
            read_upload(other + whole, _mask(hole))


def test_photographs_of_phones_with_a_film_or_further_pictures_behind_are_taken():
    hole = _hole(24, 30, 4, 4, 9, 9)
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 30, 3), dtype=np.uint8))
    for options in (
        {},
        {"progressive": True},
        {"quality": 100, "restart_marker_rows": 1},
        {"exif": b"Exif\0\0" + b"\xff\xd9" * 9},
    ):
        whole = _saved(picture, "JPEG", **options)
        for tail in (b"", b"\0\0\0\x18ftypmp42" + b"\0" * 50 + b"x", whole):
            assert read_upload(whole + tail, _mask(hole)).hole.shape == (24, 30)
    several = _saved(picture, "MPO", save_all=True, append_images=[picture])
    assert read_upload(several, _mask(hole)).hole.shape == (24, 30)


def test_pixels_are_counted_without_decoding():
    picture = _png(np.zeros((20, 30, 3), np.uint8))
    assert count_pixels(picture, _mask(_hole(20, 30, 0, 0, 2, 2)), expand=(1, 2, 3, 4)) == 26 * 34 + 600
    assert count_pixels(b"nonsense", None) == 0


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = _saved(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ApiError, match="image"):
        read_upload(bomb, None)
    with pytest.raises(ApiError, match="mask"):
        read_upload(_png(OPAQUE), bomb)
