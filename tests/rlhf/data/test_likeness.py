"""Likeness to the original, and sharpness."""

import os
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.data.likeness import likeness, sharpness
from rlhf.storage.images import composite, image_to_tensor, mask_to_tensor

PICTURES = Path(os.path.dirname(skimage.data.__file__))
TEXTURES, PHOTOGRAPHS = ("brick", "grass", "gravel"), ("astronaut", "chelsea", "coffee")
HOLES = 6
"""Holes of a family that a ranking is averaged over; a single thin one may turn out otherwise."""


def crop(name: str, start: float, stop: float) -> torch.Tensor:
    """A square of the picture between two shares of its short side, at 64x64: [1, 3, 64, 64]."""
    picture = Image.open(PICTURES / f"{name}.png").convert("RGB")
    side = min(picture.size)
    place = (side * start, side * start, side * stop, side * stop)
    return image_to_tensor(picture.resize((64, 64), Image.Resampling.LANCZOS, box=place))[None]


def blur(images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), sigma=(0, 0, 3, 3)))


def hole(family: str, seed: int = 0) -> torch.Tensor:
    return mask_to_tensor(draw_hole(family, np.random.default_rng(seed), 64))[None]


def utilities(fills: list[torch.Tensor], original: torch.Tensor, mask: torch.Tensor) -> list[float]:
    images = torch.cat([composite(fill, original, mask) for fill in fills])
    count = len(fills)
    judged = likeness(images, original.expand(count, -1, -1, -1), mask.expand(count, -1, -1, -1))
    for marks in (judged.structure, judged.texture, judged.overall):
        assert ((marks >= 0) & (marks <= 1.0001)).all()
    return judged.overall.tolist()


def poor_fills(original: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Blurred original, the mean colour of what is known, and noise: from bearable to bad."""
    known = (original * (1 - mask)).sum((2, 3), keepdim=True) / (1 - mask).sum()
    noise = torch.rand(original.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return [blur(original), known.expand_as(original), noise]


def assert_descending(marks: list[float], names: list[str]) -> None:
    ordered = all(a > b for a, b in zip(marks, marks[1:], strict=False))
    assert ordered, ", ".join(f"{name} {mark:.3f}" for name, mark in zip(names, marks, strict=True))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("name", TEXTURES)
def test_another_piece_of_the_same_texture_comes_right_after_the_original(name: str, family: str) -> None:
    original, other = crop(name, 0.0, 0.6), crop(name, 0.4, 1.0)
    marks = np.zeros(5)
    for seed in range(HOLES):
        mask = hole(family, seed)
        marks += np.array(utilities([original, other, *poor_fills(original, mask)], original, mask)) / HOLES
    assert_descending(marks.tolist(), ["original", "other place", "blurred", "mean", "noise"])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_photographs_rank_original_blurred_mean_noise(family: str) -> None:
    names = ["original", "blurred", "mean", "noise"]
    marks = np.zeros(4)
    for name in PHOTOGRAPHS:
        original = crop(name, 0.0, 0.8)
        for seed in range(HOLES):
            mask = hole(family, seed)
            own = utilities([original, *poor_fills(original, mask)], original, mask)
            assert own[0] > own[1] > max(own[2:]), f"{name}, hole {seed}: {own}"
            marks += np.array(own)
    assert_descending(marks.tolist(), names)


@pytest.mark.parametrize("name", TEXTURES + PHOTOGRAPHS)
def test_the_original_itself_scores_one(name: str) -> None:
    original = crop(name, 0.1, 0.9)
    masks = torch.cat([hole(family) for family in FAMILIES])
    originals = original.expand(len(masks), -1, -1, -1)
    judged = likeness(originals, originals, masks)
    for marks in (judged.structure, judged.texture, judged.overall):
        torch.testing.assert_close(marks, torch.ones(len(masks)), atol=1e-4, rtol=0)


def test_pixels_far_from_the_hole_do_not_count() -> None:
    original = crop("astronaut", 0.0, 0.8)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 4:20, 4:20] = 1
    fill = composite(blur(original), original, mask)
    changed = fill.clone()
    changed[..., 48:, 48:] = -changed[..., 48:, 48:]
    before, after = likeness(fill, original, mask), likeness(changed, original, mask)
    torch.testing.assert_close(after.overall, before.overall, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.structure, before.structure, atol=1e-6, rtol=0)


def test_a_fill_judged_alone_or_in_a_batch_gets_the_same_mark() -> None:
    original, mask = crop("chelsea", 0.0, 0.8), hole("box")
    fills = poor_fills(original, mask)
    together = utilities(fills, original, mask)
    assert together == pytest.approx([utilities([fill], original, mask)[0] for fill in fills], abs=1e-6)


def test_a_shift_in_brightness_costs_more_the_larger_it_is() -> None:
    original, mask = crop("coffee", 0.2, 0.8) * 0.5, hole("box")
    marks = utilities([original + shift for shift in (0.0, 0.1, 0.2, 0.4)], original, mask)
    assert_descending(marks, ["0", "0.1", "0.2", "0.4"])


def test_sharpness_falls_with_blur_and_sees_only_the_hole() -> None:
    original, mask = crop("grass", 0.0, 0.6), hole("box")
    blurred = blur(original)
    assert float(sharpness(blurred, mask)) < 0.3 * float(sharpness(original, mask))
    rows, columns = (int(torch.where(mask[0, 0].any(d))[0].min()) for d in (1, 0))
    changed = original.clone()
    changed[..., : max(rows - 2, 0), :] = 0
    changed[..., :, : max(columns - 2, 0)] = 0
    assert not torch.equal(changed, original)
    torch.testing.assert_close(sharpness(changed, mask), sharpness(original, mask))
