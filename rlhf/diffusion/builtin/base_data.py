"""Photographs for the base models: lists those to train on, and draws crops and holes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.data.photographs import set_aside
from rlhf.errors import UserError
from rlhf.storage.images import decode_image, image_to_tensor, list_photographs, mask_to_tensor, square_crop


def training_paths(folders: Iterable[Path]) -> list[Path]:
    """Returns the photographs below the folders, without those set aside, in order of folder and name.

    Raises UserError if a folder is missing or nothing is left.
    """
    aside = set_aside()
    paths = [path for folder in folders for path in list_photographs(folder) if path.name not in aside]
    if not paths:
        raise UserError("no photographs to train on; name folders with PNG or JPEG files")
    return paths


def load_photographs(paths: Iterable[Path]) -> list[Image.Image]:
    """Decodes all photographs to 8-bit RGB in memory."""
    return [decode_image(path) for path in paths]


def augmented_crop(photographs: list[Image.Image], rng: np.random.Generator, size: int) -> Image.Image:
    """Returns a square of a random photograph, resampled with antialiasing to `size` px and varied at random.

    Its side is drawn log-uniformly from `size` px (full resolution) to the photograph's short side. It may be
    mirrored, and its brightness, contrast and colour change by up to a fifth; one in twenty swaps its colours.
    """
    photograph = photographs[rng.integers(len(photographs))]
    lowest = min(1.0, size / min(photograph.size))
    side = lowest ** rng.random()
    crop = square_crop(photograph, rng, size=size, scale=(side, side))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.05:
        crop = Image.merge("RGB", [crop.split()[i] for i in rng.permutation(3)])
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        crop = enhance(crop).enhance(rng.uniform(0.8, 1.2))
    return crop


def crop_batch(photographs: list[Image.Image], rng: np.random.Generator, count: int, size: int) -> torch.Tensor:
    """Returns augmented crops, [count, 3, size, size] in [-1, 1]."""
    return torch.stack([image_to_tensor(augmented_crop(photographs, rng, size)) for _ in range(count)])


def hole_batch(rng: np.random.Generator, count: int, size: int) -> torch.Tensor:
    """Draws masks of all hole families with equal probability, [count, 1, size, size], 1 = repaint."""
    families = list(FAMILIES)
    return torch.stack(
        [mask_to_tensor(draw_hole(families[rng.integers(len(families))], rng, size)) for _ in range(count)]
    )
