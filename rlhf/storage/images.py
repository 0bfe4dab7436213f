"""Photographs and masks as files and tensors; `rlhf/storage/bounded_decoding.py` decodes them.

Images are float32 [B, 3, H, W] in [-1, 1]; masks are float32 [B, 1, H, W], 1 = repaint.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.bounded_decoding import decode_image
from rlhf.storage.png import encode_png

PHOTOGRAPH_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}


def list_photographs(folder: Path) -> list[Path]:
    """Returns the files below `folder` with a photograph's suffix, sorted by path."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a folder of photographs")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTOGRAPH_SUFFIXES and p.is_file())


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Writes uint8 [H, W, 3] or [H, W] as a PNG, whole or not at all."""
    data = encode_png(Image.fromarray(pixels))
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def decode_mask(source: bytes | Path, *, size: tuple[int, int] | None, name: str, is_apart: bool = False) -> np.ndarray:
    """Decodes a mask to bool [H, W], True = repaint (values of 128 and more); `is_apart` as in `decode_image`.

    Raises UserError if its size differs from `size` (width, height; None takes any), it has no hole, or it
    leaves nothing known.
    """
    mask = np.asarray(decode_image(source, name=name, is_apart=is_apart).convert("L")) >= 128
    if size is not None and mask.shape != (size[1], size[0]):
        raise UserError(
            f"{name}: mask is {mask.shape[1]}x{mask.shape[0]}, image is {size[0]}x{size[1]}; make them equal"
        )
    if not mask.any():
        raise UserError(f"{name}: mask has no hole; paint the pixels to repaint white")
    if mask.all():
        raise UserError(f"{name}: mask covers the whole image; leave some pixels black (known)")
    return mask


def image_to_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    """Converts an RGB image, uint8 [H, W, 3], to float32 [3, H, W] in [-1, 1]."""
    pixels = np.array(image, dtype=np.uint8)
    return from_8bit(torch.from_numpy(pixels).permute(2, 0, 1))


def mask_to_tensor(mask: np.ndarray) -> torch.Tensor:
    """Converts bool [H, W] to float32 [1, H, W], 1 = repaint."""
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None]


def to_8bit(images: torch.Tensor) -> torch.Tensor:
    """Converts floats in [-1, 1] on the 8-bit grid (see `composite`) to uint8 of the same shape, without loss."""
    return ((images + 1.0) * 127.5).round().to(torch.uint8)


def from_8bit(pixels: torch.Tensor) -> torch.Tensor:
    """Inverts `to_8bit`, to the last bit."""
    return pixels.float() / 127.5 - 1.0


def tensor_to_image(image: torch.Tensor) -> Image.Image:
    """Converts float [3, H, W] in [-1, 1] to an 8-bit RGB image; inverts `image_to_tensor`."""
    return Image.fromarray(to_8bit(image.float().clamp(-1, 1)).permute(1, 2, 0).cpu().numpy())


def composite(generated: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Keeps the known pixels of `image` bit for bit and takes the hole from `generated`.

    Shapes [B, 3, H, W], [B, 3, H, W], [B, 1, H, W]. Training, scoring and serving
    all use this function. The hole is clamped to [-1, 1] and rounded to the 8-bit grid, so the
    scored pixels are the stored ones.
    """
    rounded = ((generated.clamp(-1, 1) + 1.0) * 127.5).round() / 127.5 - 1.0
    return torch.where(mask > 0.5, rounded, image)


def blank_hole(image: torch.Tensor, mask: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """Returns the masked image: hole pixels set to 0 in [-1, 1] (mid-grey), as in diffusers, or to `value`."""
    return image * (mask < 0.5) if value == 0 else torch.where(mask < 0.5, image, value)


def random_crop(
    image: Image.Image, rng: np.random.Generator, *, size: tuple[int, int], scale: tuple[float, float]
) -> Image.Image:
    """Returns a random crop of the shape of `size` (height, width), resampled to it.

    Its sides are a share `scale` of those of the largest crop of that shape.
    """
    (height, width), share = size, rng.uniform(*scale)
    largest = min(image.width, image.height * (width / height)), min(image.height, image.width * (height / width))
    columns, rows = (max(1, round(side * share)) for side in largest)
    left = int(rng.integers(0, image.width - columns + 1))
    top = int(rng.integers(0, image.height - rows + 1))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + columns, top + rows))


def square_crop(image: Image.Image, rng: np.random.Generator, *, size: int, scale: tuple[float, float]) -> Image.Image:
    """Returns a random square crop, its side a share `scale` of the short side, resampled to `size` px."""
    return random_crop(image, rng, size=(size, size), scale=scale)
