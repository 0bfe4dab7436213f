"""Grids of pictures, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.images import encode_png, tensor_to_image


def image_grid(rows: Sequence[Sequence[Image.Image]], *, zoom: int = 1, gap_px: int = 2) -> Image.Image:
    """Arranges pictures in rows on a white background, in cells of the widest and highest one."""
    width, height = (zoom * max(image.size[side] for row in rows for image in row) for side in (0, 1))
    columns = max(len(row) for row in rows)
    grid = Image.new("RGB", (columns * (width + gap_px) - gap_px, len(rows) * (height + gap_px) - gap_px), "white")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            size = (image.width * zoom, image.height * zoom)
            grid.paste(image.resize(size, Image.Resampling.NEAREST), (c * (width + gap_px), r * (height + gap_px)))
    return grid


def save_rollout_grid(images: torch.Tensor, samples_per_prompt: int, path: Path) -> None:
    """Writes samples [B, 3, H, W], which lie prompt by prompt, as a PNG with one row per prompt."""
    pictures = [tensor_to_image(image) for image in images]
    rows = [pictures[i : i + samples_per_prompt] for i in range(0, len(pictures), samples_per_prompt)]
    _save(image_grid(rows, zoom=2), path)


def save_comparison_grid(columns: Sequence[Sequence[torch.Tensor]], path: Path, *, per_row: int = 2) -> None:
    """Writes a PNG of pictures side by side, e.g. masked, base, aligned, original; each column has N of [3, H, W].

    Each row of the PNG holds `per_row` sets of pictures.
    """
    sets = [[tensor_to_image(image) for image in images] for images in zip(*columns, strict=True)]
    rows = [sum(sets[i : i + per_row], []) for i in range(0, len(sets), per_row)]
    _save(image_grid(rows, zoom=2), path)


def _save(picture: Image.Image, path: Path) -> None:
    data = encode_png(picture)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))
