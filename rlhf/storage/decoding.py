"""Decodes pictures that others made: photographs, masks, uploads. Imports no torch.

Formats are an allow-list, and what decoding would cost is bounded by the header first. All that a decoder raises
becomes a UserError. `rlhf/storage/bounded_decoding.py` limits its time and memory.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rlhf.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
"""Formats that are read, by Pillow's names."""
FIRST_ONLY = ("GIF", "MPO")
"""Formats of which the first picture is taken; MPO is what phones call a JPEG with further pictures."""
MAX_PIXELS = 100_000_000
"""Largest number of pixels; larger photographs are refused before they are decoded."""
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Above it Pillow warns of what is refused here anyway.
MAX_FILE_BYTES = 1_000_000_000
"""Largest file that is read from disk."""
MAX_SCANS = 50
"""Most scans of a JPEG: each costs a pass over all pixels, whatever its length. Usual encoders write up to 12."""
STRIP_PX = 1_000_000
"""Pixels that are converted at a time, so that no second copy of a large picture is held."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd8\x01]")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the head of a file says."""

    width: int
    """In pixels, before the picture is turned upright."""
    height: int
    scans: int
    """Scans of a JPEG; 1 for other formats."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.width * self.height

    @property
    def passes_px(self) -> float:
        """Number of pixels, counted again for every ten scans: what decoding costs."""
        return self.pixels * max(1.0, self.scans / 10)


def read_header(source: bytes | Path, *, name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads the head of a file. Raises UserError as `decode_layers` does, except for damaged pixels."""
    with _opened(source, name, max_pixels) as (_, header):
        return header


def decode_layers(source: bytes | Path, *, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a picture to upright uint8 [H, W, 3], or [H, W, 4] if it has transparency.

    Palette, grey, CMYK and 16-bit pictures are converted. Raises UserError, naming the file, if it is of none of
    FORMATS, empty, damaged, of more pixels than `max_pixels` or scans than MAX_SCANS, or holds several pictures.
    """
    with _opened(source, name, max_pixels) as (image, _):
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        image = _to_8bit(image)
        has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
        mode = "RGBA" if has_alpha else "RGB"
        layers = np.empty((image.height, image.width, len(mode)), np.uint8)
        for top, bottom in _strips(*layers.shape[:2]):
            strip = image.crop((0, top, image.width, bottom))
            layers[top:bottom] = np.asarray(strip.convert(mode))
        return layers


def put_on_white(layers: np.ndarray) -> np.ndarray:
    """Composites uint8 [H, W, 4] on white; returns uint8 [H, W, 3]. Layers without alpha are returned as they are."""
    if layers.shape[2] == 3:
        return layers
    done = np.empty((*layers.shape[:2], 3), np.uint8)
    for top, bottom in _strips(*layers.shape[:2]):
        strip = Image.fromarray(layers[top:bottom])
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        done[top:bottom] = np.asarray(Image.alpha_composite(white, strip).convert("RGB"))
    return done


def count_scans(data: bytes) -> int:
    """Counts the scans of a JPEG up to its end; film or pictures behind it do not count. Stops above MAX_SCANS."""
    scans, position = 0, 2
    while scans <= MAX_SCANS and (found := _MARKER.search(data, position)) is not None:
        marker, position = data[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        position += int.from_bytes(data[position : position + 2], "big")
    return scans


def read_file(path: Path, name: str) -> bytes:
    """Reads a picture's file. Raises UserError if it cannot be read, or is longer than MAX_FILE_BYTES."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{name}: more than {MAX_FILE_BYTES / 1e6:.0f} MB; scale it down")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error}); replace or remove it") from error


@contextmanager
def _opened(source: bytes | Path, name: str, max_pixels: int) -> Iterator[tuple[Image.Image, Header]]:
    """Opens a picture, and turns whatever is raised meanwhile into a UserError."""
    try:
        data = source if isinstance(source, bytes) else read_file(source, name)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image, _check(image, data, name, max_pixels)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {error}; scale it down") from error
    except MemoryError as error:
        remedy = "scale it down, or save it again as a usual JPEG or PNG"
        raise UserError(f"{name}: decoding needs more memory than it may take; {remedy}") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(f"{name}: not an image that can be read ({known}); replace or remove it") from error
    # Decoders raise what they like for a damaged file: RuntimeError, struct.error, KeyError and others.
    except Exception as error:
        problem = str(error) or type(error).__name__
        raise UserError(f"{name}: not a readable image ({problem}); replace or remove it") from error


def _check(image: Image.Image, data: bytes, name: str, max_pixels: int) -> Header:
    scans = count_scans(data) if image.format in ("JPEG", "MPO") else 1
    header = Header(width=image.width, height=image.height, scans=scans)
    if header.pixels > max_pixels:
        raise UserError(f"{name}: {image.width}x{image.height} is more than {max_pixels} pixels; scale it down")
    if scans > MAX_SCANS:
        raise UserError(f"{name}: a JPEG of more than {MAX_SCANS} scans; save it again as a usual JPEG or PNG")
    if image.format not in FIRST_ONLY and getattr(image, "is_animated", False):
        raise UserError(f"{name}: holds several pictures; give one")
    return header


def _to_8bit(image: Image.Image) -> Image.Image:
    """Converts integers of 16 and 32 bits and floats to 8-bit grey."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    strips = list(_strips(image.height, image.width))

    def read(top: int, bottom: int) -> np.ndarray:
        return np.asarray(image.crop((0, top, image.width, bottom)), dtype=np.float32)

    # `I;16` spans 0-65535; `I` and `F` do not state their range.
    is_16_bit = image.mode.startswith("I;16") or any(read(*strip).max(initial=0.0) > 255.0 for strip in strips)
    grey = np.empty((image.height, image.width), np.uint8)
    for top, bottom in strips:
        grey[top:bottom] = np.clip(np.nan_to_num(read(top, bottom)) / (257.0 if is_16_bit else 1.0), 0, 255)
    return Image.fromarray(grey)


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields the first row of each strip, and the row behind its last."""
    rows = max(1, STRIP_PX // max(1, width))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))
