"""Pictures that others made: which formats are read, what they may cost, and what damaged ones end with."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlhf.errors import UserError
from rlhf.storage.bounded_decoding import decode_image
from rlhf.storage.decoding import FORMATS, MAX_SCANS, count_scans, decode_layers, read_header
from rlhf.storage.images import PHOTOGRAPH_SUFFIXES

PHOTOGRAPH = Image.fromarray(np.random.default_rng(5).integers(0, 256, (24, 30, 3), dtype=np.uint8))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def encoded(kind: str, image: Image.Image = PHOTOGRAPH, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def with_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    whole = encoded("JPEG", Image.new("RGB", (64, 64), (90, 120, 60)), progressive=True)
    last = whole.rindex(b"\xff\xda")
    head, frame = bytearray(whole[:last]), whole.index(b"\xff\xc2")
    head[frame + 5 : frame + 9] = side.to_bytes(2) * 2
    return bytes(head) + whole[last:-2] * (scans - count_scans(whole) + 1) + b"\xff\xd9"


@pytest.mark.parametrize("kind", FORMATS)
def test_each_allowed_format_is_read_and_its_head_alone_gives_the_size(kind: str) -> None:
    data = encoded(kind)
    assert decode_layers(data, name="x").shape == (24, 30, 3)
    header = read_header(data[: len(data) * 3 // 4] if kind in ("PNG", "JPEG", "BMP") else data, name="x")
    assert (header.width, header.height) == (30, 24)


@pytest.mark.parametrize("kind", ["DDS", "EPS", "PPM", "ICO", "TGA", "PCX", "SGI", "PDF", "IM", "JPEG2000", "BLP"])
def test_other_formats_are_refused_whatever_they_are_called(kind: str, tmp_path: Path) -> None:
    image = PHOTOGRAPH.convert("P") if kind == "BLP" else PHOTOGRAPH
    (tmp_path / "x.png").write_bytes(encoded(kind, image))
    with pytest.raises(UserError, match="x.png: not an image that can be read"):
        decode_image(tmp_path / "x.png")


def test_photographs_of_all_formats_are_listed() -> None:
    assert {".png", ".jpg", ".webp", ".tiff", ".gif", ".bmp", ".avif"} <= PHOTOGRAPH_SUFFIXES


def test_a_jpeg_with_very_many_scans_is_refused_before_it_is_decoded() -> None:
    assert decode_layers(with_scans(MAX_SCANS), name="x").shape == (64, 64, 3)
    for data in (with_scans(MAX_SCANS + 1), with_scans(5000, side=9990)):
        for read in (read_header, decode_layers):
            with pytest.raises(UserError, match="x: a JPEG of more than 50 scans; save it again"):
                read(data, name="x")


def test_scans_are_counted_up_to_the_end_of_the_picture() -> None:
    baseline, progressive = encoded("JPEG"), encoded("JPEG", progressive=True)
    assert count_scans(baseline) == 1
    assert 8 <= count_scans(progressive) <= 12
    scan = b"\xff\xda" * 100
    assert count_scans(encoded("JPEG", exif=b"Exif\0\0" + scan, comment=scan)) == 1, "not in segments"
    assert count_scans(baseline + scan) == 1, "not behind the picture"
    restarts = encoded("JPEG", Image.effect_noise((64, 64), 90), quality=100, restart_marker_blocks=1)
    assert count_scans(restarts) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_files_of_several_pictures_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (30, 24), colour) for colour in ("red", "lime", "blue")]
    with pytest.raises(UserError, match="x: holds several pictures; give one"):
        decode_layers(encoded(kind, frames[0], save_all=True, append_images=frames[1:]), name="x")


@pytest.mark.parametrize("kind", ["GIF", "MPO"])
def test_the_first_picture_of_a_gif_and_of_a_phones_jpeg_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (30, 24), colour) for colour in ("red", "lime", "blue")]
    layers = decode_layers(encoded(kind, frames[0], save_all=True, append_images=frames[1:]), name="x")
    assert np.abs(layers[..., :3].astype(int) - (255, 0, 0)).max() <= 2


def test_pixels_are_bounded_by_the_header() -> None:
    with pytest.raises(UserError, match="30x24 is more than 719 pixels"):
        read_header(encoded("PNG"), name="x", max_pixels=719)
    assert read_header(encoded("PNG"), name="x", max_pixels=720).pixels == 720


def test_large_pictures_are_converted_in_strips_to_the_same_pixels() -> None:
    palette = Image.effect_noise((1500, 1400), 60).convert("RGB").quantize(64)
    layers = decode_layers(encoded("PNG", palette, transparency=3), name="x")
    assert np.array_equal(
        layers, np.asarray(Image.open(io.BytesIO(encoded("PNG", palette, transparency=3))).convert("RGBA"))
    )


def mutate(kind: str, count: int) -> int:
    """Decodes damaged copies of a file, and returns how many were refused; anything but a UserError goes through."""
    rng, refused = np.random.default_rng(FORMATS.index(kind)), 0
    whole = np.frombuffer(encoded(kind, compression="tiff_lzw") if kind == "TIFF" else encoded(kind), np.uint8)
    for number in range(count):
        length = len(whole) if number % 2 else rng.integers(1, len(whole) + 1)
        damaged = whole[:length].copy()
        # Half of the changes hit the head, where they do most.
        places = rng.integers(0, min(length, 400 if number % 4 < 2 else length), rng.integers(1, 12))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            assert decode_layers(damaged.tobytes(), name="x", max_pixels=1_000_000).dtype == np.uint8
        except UserError:
            refused += 1
    return refused


@pytest.mark.parametrize("kind", FORMATS)
def test_500_damaged_files_are_read_or_refused_by_name(kind: str) -> None:
    assert mutate(kind, 500) > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_10000_damaged_files_are_read_or_refused_by_name(kind: str) -> None:
    assert mutate(kind, 10_000) > 1000
