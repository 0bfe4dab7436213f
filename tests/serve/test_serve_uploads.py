"""Uploads that the service reads or refuses, without Ray."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_uploads import hole_in, look_at, mask_png, png, read_upload

from rlhf.diffusion.tiles import cut
from rlhf.promotion.catalogue import ServedName, ServedPolicy
from serve.api.answers import Answers
from serve.api.api_errors import ApiError
from serve.api.edit_request import EditRequest
from serve.api.image_store import ImageStore
from serve.api.painting import PaintedEdit, plan_edit
from serve.api.served_names import Chosen


def test_alpha_below_128_is_the_hole():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[0, 0, 3], pixels[0, 1, 3] = 127, 128
    assert np.argwhere(read_upload(png(pixels), None).hole).tolist() == [[0, 0]]


def test_photographs_and_masks_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.full((4, 8, 4), 255, np.uint8)
    pixels[0, 0, 3] = 0
    upload = read_upload(png(pixels, exif=exif), None)
    assert upload.rgb.shape == (8, 4, 3)
    assert np.argwhere(upload.hole).tolist() == [[0, 3]]


def test_palette_and_grey_images_are_read():
    hole = hole_in(8, 8, 2, 2, 4, 4)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(read_upload(png(grey), mask_png(hole)).rgb[..., 0], grey)
    palette = Image.fromarray(np.where(hole, 1, 0).astype(np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG", transparency=1)
    assert np.array_equal(read_upload(buffer.getvalue(), None).hole, hole)


OPAQUE = np.full((8, 8, 4), 255, np.uint8)
BAD_UPLOADS = {
    "no image": (b"nonsense", None, "image"),
    "empty": (b"", None, "image"),
    "truncated": (png(np.zeros((64, 64, 3), np.uint8))[:60], None, "image"),
    "no transparency": (png(OPAQUE[..., :3]), None, "image"),
    "all opaque": (png(OPAQUE), None, "image"),
    "all transparent": (png(np.zeros((8, 8, 4), np.uint8)), None, "image"),
    "black and white mask": (png(OPAQUE), png(OPAQUE[..., 0]), "mask"),
    "mask of another size": (png(OPAQUE), mask_png(hole_in(9, 8, 0, 0, 2, 2)), "mask"),
    "mask is no image": (png(OPAQUE), b"nonsense", "mask"),
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
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_files_are_refused_or_read_and_never_fail_otherwise(file_format: str):
    rng = np.random.default_rng(5)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(buffer, format=file_format)
    whole, mask = np.frombuffer(buffer.getvalue(), np.uint8), mask_png(hole_in(24, 30, 4, 4, 9, 9))
    refused = []
    for _ in range(40):
        damaged = whole[: rng.integers(1, len(whole) + 1)].copy()
        places = rng.integers(0, len(damaged), rng.integers(1, 12))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            read_upload(damaged.tobytes(), mask)
        except ApiError as error:
            refused.append(error.param)
    assert set(refused) == {"image"}
    assert len(refused) > 5


def test_an_extension_is_a_hole_around_the_photograph_and_needs_no_mask():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    upload = read_upload(png(pixels), None, expand=[3, 0, 0, 5])
    assert upload.hole.shape == (25, 33)
    assert not upload.hole[:20, 3:].any()
    assert upload.hole[:, :3].all()
    assert upload.hole[20:].all()
    assert np.array_equal(upload.rgb[:20, 3:], pixels)
    with pytest.raises(ApiError, match="megapixels"):
        read_upload(png(np.zeros((6000, 1, 3), np.uint8)), None, expand=[4096] * 4)


def test_a_white_mask_is_what_is_painted_white_also_on_nothing():
    pixels, hole = np.zeros((20, 30, 3), np.uint8), hole_in(20, 30, 4, 4, 9, 9)
    white = np.where(hole, 255, 0).astype(np.uint8)
    strokes = np.dstack([np.full((20, 30, 3), 255, np.uint8), white])
    for mask in (white, np.dstack([white] * 3), strokes):
        assert np.array_equal(read_upload(png(pixels), png(mask), mask_convention="white").hole, hole)


def _saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def test_all_depths_and_colour_spaces_are_read_as_8_bit_rgb():
    hole, rng = hole_in(24, 30, 4, 4, 9, 9), np.random.default_rng(3)
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
        upload = read_upload(data, mask_png(hole))
        assert upload.rgb.shape == (24, 30, 3)
        assert upload.rgb.std() > 5, "not blank"
        assert np.array_equal(upload.hole, hole)


@pytest.mark.parametrize("file_format", ["WEBP", "PNG", "TIFF", "AVIF"])
def test_animated_files_are_refused(file_format: str):
    frames = [Image.new("RGB", (30, 24), colour) for colour in ("red", "green", "blue")]
    with pytest.raises(ApiError, match="several pictures"):
        read_upload(_saved(frames[0], file_format, save_all=True, append_images=frames[1:]), None)


OTHER_FILES = {
    "archive": b"PK\x03\x04" + b"\0" * 30 + b"evil.exe" + b"PK\x05\x06" + b"\0" * 18,
    "page": b"<html><script>alert('evil.exe')</script></html>",
    "document": b"%PDF-1.7 evil.exe",
    "program": b"#!/bin/sh\nevil.exe\n",
}


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_nothing_but_pixels_of_an_upload_reaches_answers_or_the_store(
    file_format: str, output_format: str, tmp_path: Path
):
    hole = hole_in(24, 30, 4, 4, 9, 9)
    pixels = np.random.default_rng(3).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "evil.exe"
    options = {"comment": b"evil.exe"} if file_format in ("JPEG", "GIF") else {"exif": exif}
    plain, noted = (_saved(Image.fromarray(pixels), file_format, **fields) for fields in ({}, options))
    assert b"evil.exe" in noted
    expected = _answered(plain, mask_png(hole), output_format, tmp_path)
    for other in OTHER_FILES.values():
        answered = _answered(noted + other, mask_png(hole) + other, output_format, tmp_path)
        assert answered == expected
        assert not any(b"evil" in data for data in answered)
        with pytest.raises(ApiError):
            read_upload(other + plain, mask_png(hole))


def _answered(image: bytes, mask: bytes, output_format: str, folder: Path) -> list[bytes]:
    """The image file of an answer as base64, and as stored for a URL."""
    chosen = Chosen("tiny", ServedName(base="tiny"), ServedPolicy())
    answered = []
    for response_format in ("b64_json", "url"):
        fields = {"output_format": output_format, "response_format": response_format, "seed": 0}
        edit = plan_edit(EditRequest.model_validate(fields), read_upload(image, mask), chosen, [(64, 64)])
        painted = PaintedEdit(samples=[cut(edit.canvas, edit.region)], scores=[], unsafe=[], jobs=[])
        (record,) = Answers(edit, ImageStore(folder), "").records(painted)
        stored = "url" in record
        answered.append((folder / record["url"]).read_bytes() if stored else base64.b64decode(record["b64_json"]))
    return answered


def test_photographs_of_phones_with_a_film_or_further_pictures_behind_are_taken():
    hole = hole_in(24, 30, 4, 4, 9, 9)
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 30, 3), dtype=np.uint8))
    for options in (
        {},
        {"progressive": True},
        {"quality": 100, "restart_marker_rows": 1},
        {"exif": b"Exif\0\0" + b"\xff\xd9" * 9},
    ):
        whole = _saved(picture, "JPEG", **options)
        for tail in (b"", b"\0\0\0\x18ftypmp42" + b"\0" * 50 + b"x", whole):
            assert read_upload(whole + tail, mask_png(hole)).hole.shape == (24, 30)
    several = _saved(picture, "MPO", save_all=True, append_images=[picture])
    assert read_upload(several, mask_png(hole)).hole.shape == (24, 30)


def test_pixels_are_counted_without_decoding():
    picture = png(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    mask = mask_png(hole_in(20, 30, 0, 0, 2, 2))
    upload = look_at(picture[:200], mask, expand=[1, 2, 3, 4], n=2)
    assert upload.pixels == 26 * 34 + 600
    assert upload.pixels_in_work == 3 * upload.pixels


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = _saved(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ApiError, match="image"):
        read_upload(bomb, None)
    with pytest.raises(ApiError, match="mask"):
        read_upload(png(OPAQUE), bomb)
