"""Reading photographs and masks safely, and putting a hole's pixels in."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlhf.errors import UserError
from rlhf.storage.images import (
    blank_hole,
    composite,
    decode_image,
    decode_mask,
    encode_png,
    from_8bit,
    image_to_tensor,
    list_photographs,
    mask_to_tensor,
    square_crop,
    tensor_to_image,
    to_8bit,
)


def noise_pixels(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_known_pixels_survive_exactly() -> None:
    original = Image.fromarray(noise_pixels())
    image = image_to_tensor(original)[None]
    mask = torch.zeros(1, 1, 24, 32)
    mask[..., 5:20, 8:25] = 1
    generated = torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    done = composite(generated, image, mask)
    stored = decode_image(encode_png(tensor_to_image(done[0])))
    is_known = mask[0, 0].numpy() == 0
    assert np.array_equal(np.asarray(stored)[is_known], np.asarray(original)[is_known])
    assert torch.equal(image_to_tensor(stored), done[0]), "what is scored is what is stored"
    inside = mask.expand_as(done) > 0
    assert float((done - generated.clamp(-1, 1))[inside].abs().max()) <= 0.5 / 127.5 + 1e-6


def test_the_hole_of_a_composite_does_not_depend_on_the_original() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 1
    generated = torch.rand(1, 3, 8, 8)
    a, b = composite(generated, torch.zeros(1, 3, 8, 8), mask), composite(generated, torch.ones(1, 3, 8, 8), mask)
    assert torch.equal(a * mask, b * mask)


def test_blank_hole_keeps_the_known_and_sets_the_hole_to_mid_grey() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 2:5] = 1
    image = torch.rand(1, 3, 8, 8) + 0.1
    blanked = blank_hole(image, mask)
    assert torch.equal(blanked == 0, mask.expand_as(image) == 1)
    assert torch.equal(blanked[blanked != 0], image[mask.expand_as(image) == 0])


def test_tensor_form_spans_minus_one_to_one_and_is_inverted_exactly() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    tensor = image_to_tensor(Image.fromarray(ramp))
    assert (float(tensor.min()), float(tensor.max())) == (-1.0, 1.0)
    assert np.array_equal(np.asarray(tensor_to_image(tensor)), ramp)


DAMAGED = {
    "empty.png": b"",
    "garbage.jpg": bytes(range(256)) * 8,
    "text.png": b"not an image at all",
    "truncated.png": encoded(Image.fromarray(noise_pixels()))[:900],
    "truncated.jpg": encoded(Image.fromarray(noise_pixels()), "JPEG")[:500],
    "bomb.png": png_header(30_000, 30_000),
    "large.png": png_header(12_000, 10_000),
    "no_pixels.png": png_header(32, 32),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damaged_and_oversized_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=name):
        decode_image(path)
    with pytest.raises(UserError, match="row 7"):
        decode_image(DAMAGED[name], name="row 7")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.png"):
        decode_image(tmp_path / "gone.png")


def test_16_bit_grey_keeps_its_brightness() -> None:
    values = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values))))
    assert np.abs(decoded[..., 0] - values / 257.0).max() <= 1.0
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_dark_16_bit_grey_stays_dark() -> None:
    values = np.full((8, 8), 200, dtype=np.uint16)
    assert np.asarray(decode_image(encoded(Image.fromarray(values)))).max() <= 1


def test_every_mode_becomes_8_bit_rgb_of_the_same_colour() -> None:
    colour = Image.new("RGB", (20, 10), (200, 40, 90))
    files = {
        "grey": encoded(Image.new("L", (20, 10), 77)),
        "palette": encoded(colour.convert("P", palette=Image.Palette.ADAPTIVE)),
        "cmyk": encoded(colour.convert("CMYK"), "TIFF"),
        "cmyk jpeg": encoded(colour.convert("CMYK"), "JPEG", quality=100),
        "opaque": encoded(colour.convert("RGBA")),
        "bilevel": encoded(Image.new("1", (20, 10), 1)),
    }
    expected = {"grey": (77, 77, 77), "bilevel": (255, 255, 255)}
    for kind, data in files.items():
        decoded = decode_image(data)
        assert (decoded.mode, decoded.size) == ("RGB", (20, 10)), kind
        assert np.allclose(decoded.getpixel((3, 3)), expected.get(kind, (200, 40, 90)), atol=4), kind


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    image.putpixel((1, 1), (10, 20, 30, 0))
    decoded = decode_image(encoded(image))
    assert decoded.getpixel((1, 1)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (10, 20, 30)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((2, 2), 1)
    decoded = decode_image(encoded(palette, transparency=1))
    assert decoded.getpixel((2, 2)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (10, 20, 30)


def test_photographs_taken_sideways_come_upright() -> None:
    upright = Image.new("RGB", (32, 16), (0, 0, 0))
    upright.paste((250, 250, 250), (0, 0, 32, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    decoded = np.asarray(decode_image(encoded(sideways, "JPEG", exif=exif, quality=95)))
    assert decoded.shape == (16, 32, 3)
    assert decoded[:6].mean() > 200
    assert decoded[10:].mean() < 50


def test_mask_is_true_where_it_is_bright() -> None:
    pixels = np.array([[0, 127, 128, 255]] * 3, dtype=np.uint8)
    mask = decode_mask(encoded(Image.fromarray(pixels)), size=(4, 3), name="m")
    assert mask.tolist() == [[False, False, True, True]] * 3
    assert mask_to_tensor(mask).tolist() == [[[0.0, 0.0, 1.0, 1.0]] * 3]


@pytest.mark.parametrize(
    ("value", "size", "message"), [(255, (8, 8), "whole image"), (0, (8, 8), "no hole"), (255, (9, 8), "8x8.*9x8")]
)
def test_masks_that_do_not_fit_are_refused_by_name(value: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=f"hole.png: .*{message}"):
        decode_mask(encoded(Image.new("L", (8, 8), value)), size=size, name="hole.png")


def test_listing_finds_photographs_at_any_depth_sorted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in list_photographs(tmp_path)] == ["a.png", "b.JPG", "c.webp"]
    with pytest.raises(UserError, match="no such folder"):
        list_photographs(tmp_path / "absent")


def test_square_crop_is_square_inside_and_reproducible() -> None:
    photograph = Image.fromarray(noise_pixels(40, 70))
    for seed in range(20):
        crops = [square_crop(photograph, np.random.default_rng(seed), size=16, scale=(0.3, 1.0)) for _ in range(2)]
        assert crops[0].size == (16, 16)
        assert crops[0].tobytes() == crops[1].tobytes()
    flat = square_crop(Image.new("RGB", (40, 70), (9, 8, 7)), np.random.default_rng(0), size=16, scale=(1.0, 1.0))
    assert flat.getcolors() == [(256, (9, 8, 7))]


def test_eight_bits_hold_composited_images_to_the_last_bit() -> None:
    image, mask = from_8bit(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)), torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:6] = 1
    images = composite(torch.randn(2, 3, 8, 8), image, mask)
    assert torch.equal(from_8bit(to_8bit(images)), images)
    everything = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_8bit(from_8bit(everything)), everything)
