"""Fills of a hole of known quality: the original, continued textures, degradations of all strengths, painters.

Each fill carries the marks that the simulated annotators are to give, in [0, 1]: structure (does it belong there?),
texture (is its local detail real?), overall. The table is the annotators' taste. It was fixed before any alignment.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.storage.images import image_to_tensor, mask_to_tensor

SIZE = 64
OFFSETS = 24
"""Windows of the same photograph among which a texture's continuation is sought."""

Marks = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A square window of a photograph with a hole."""

    photograph: Image.Image
    window: tuple[int, int, int]
    """Left, top, side in pixels of the photograph."""
    image: torch.Tensor
    """float32 [3, SIZE, SIZE] in [-1, 1]."""
    mask: torch.Tensor
    """float32 [1, SIZE, SIZE], 1 = repainted."""
    family: str


def draw_places(photographs: list[Image.Image], count: int, seed: int) -> list[Place]:
    """Draws windows of the photographs in turn, with holes of the families in turn."""
    families = list(FAMILIES)
    places = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        photograph = photographs[index % len(photographs)]
        side = max(SIZE, round(min(photograph.size) * rng.uniform(0.3, 1.0)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
        image = cut(photograph, left, top, side)
        if rng.random() < 0.5:
            photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left = photograph.width - side - left
            image = image.flip(-1)
        family = families[(index // len(photographs) + index) % len(families)]
        mask = mask_to_tensor(draw_hole(family, rng, SIZE))
        places.append(Place(photograph=photograph, window=(left, top, side), image=image, mask=mask, family=family))
    return places


def cut(photograph: Image.Image, left: int, top: int, side: int) -> torch.Tensor:
    """Returns a window at SIZE pixels, [3, SIZE, SIZE]."""
    box = (left, top, left + side, top + side)
    return image_to_tensor(photograph.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=box))


def degrade(place: Place, other: Place, rng: np.random.Generator) -> Iterator[tuple[str, torch.Tensor, Marks]]:
    """Yields name, filled picture before compositing, and marks; `other` is of another photograph."""
    image, mask = place.image, place.mask
    yield "original", image, (1.0, 1.0, 1.0)
    yield "continued", continue_texture(place, rng), (0.85, 0.92, 0.85)
    foreign = other.image
    matched = match_colours(foreign, image, mask)
    yield "other texture", foreign, (0.2, 0.7, 0.5)
    yield "other texture, matched", matched, (0.35, 0.75, 0.58)
    sigma = float(np.exp(rng.uniform(np.log(0.4), np.log(6))))
    clear = float(np.exp(-((sigma / 1.3) ** 1.2)))
    yield "blur", blur(image, sigma), (max(0.3, 0.9 - 0.12 * sigma), float(np.exp(-sigma / 0.8)), 0.18 + 0.78 * clear)
    yield "blurred texture", blur(matched, max(1.5, sigma)), (0.2, 0.05, 0.14)
    yield "smear", smear(image, mask, rng), (0.3, 0.06, 0.17)
    yield "mean colour", mean_colour(image, mask), (0.15, 0.03, 0.1)
    yield "noise", noise(image, rng), (0.03, 0.03, 0.02)
    yield from _disturb(image, mask, rng)


def _disturb(
    image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator
) -> Iterator[tuple[str, torch.Tensor, Marks]]:
    """Yields the original with noise, shifted colours, a grid, too much sharpness, and its blend with a smear."""
    amount = float(np.exp(rng.uniform(np.log(0.03), np.log(0.6))))
    kept = float(np.exp(-amount / 0.13))
    yield "noisy", image + amount * noise(image, rng), (0.9 * kept, 0.9 * kept, 0.9 * kept + 0.02)
    shift = torch.tensor(rng.normal(size=3), dtype=torch.float32)
    distance = rng.uniform(0.1, 0.7)
    shift = distance * shift / shift.norm()
    kept = float(np.exp(-distance / 0.4))
    yield "colours", image + shift.view(3, 1, 1), (0.9 * kept, 0.8 * kept, 0.85 * kept)
    height = float(np.exp(rng.uniform(np.log(0.05), np.log(0.5))))
    kept = float(np.exp(-height / 0.13))
    yield "grid", image + height * grid(rng), (0.9 * kept, 0.7 * kept, 0.85 * kept + 0.02)
    sharper = image + rng.uniform(1.0, 4.0) * (image - blur(image, 1.0))
    yield "sharpened", sharper, (0.7, 0.35, 0.45)
    share = rng.uniform(0.2, 0.8)
    blend = share * image + (1 - share) * smear(image, mask, rng)
    yield "blend", blend, (0.3 + 0.6 * share**1.5, 0.06 + 0.8 * share**1.5, 0.17 + 0.7 * share**1.5)


def continue_texture(place: Place, rng: np.random.Generator) -> torch.Tensor:
    """Returns the window of the same photograph that fits the border best, with its colours fitted to it."""
    left, top, side = place.window
    ring = F.max_pool2d(place.mask, 9, 1, 4) - place.mask
    width, height = place.photograph.size
    best, least = place.image, float("inf")
    for _ in range(OFFSETS):
        x = int(np.clip(left + rng.integers(-side, side + 1), 0, width - side))
        y = int(np.clip(top + rng.integers(-side, side + 1), 0, height - side))
        if max(abs(x - left), abs(y - top)) < side // 6:
            continue
        found = cut(place.photograph, x, y, side)
        misfit = float(((found - place.image).abs() * ring).sum() / ring.sum().clamp(min=1))
        if misfit < least:
            best, least = found, misfit
    return best + spread(place.image - best, ring)


def spread(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Spreads values [3, h, w] of the pixels with weight smoothly over all others."""
    total, mass = torch.zeros_like(values), torch.zeros_like(weights)
    for sigma in (2.0, 5.0, 12.0, 30.0):
        trust = 10.0 ** -(sigma**0.5)
        total += trust * blur(values * weights, sigma)
        mass += trust * blur(weights, sigma)
    return total / mass.clamp(min=1e-9)


def match_colours(foreign: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns `foreign` with the mean and deviation, per channel, of what is known."""
    known = mask[0] < 0.5
    mean, std = (f(image[:, known], 1)[:, None, None] for f in (torch.mean, torch.std))
    own_mean, own_std = (f(foreign.flatten(1), 1)[:, None, None] for f in (torch.mean, torch.std))
    return (foreign - own_mean) * (std / own_std.clamp(min=0.02)).clamp(max=3) + mean


def smear(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Fills from the border by repeated blurs, isotropic or along one direction."""
    sigmas = rng.uniform(1.0, 4.0, size=2) if rng.random() < 0.5 else (rng.uniform(0.3, 1.0), rng.uniform(3.0, 8.0))
    sigmas = rng.permutation(np.array(sigmas))
    filled = spread(image, 1 - mask)
    for _ in range(3):
        kept = torch.where(mask > 0.5, filled, image)
        filled = torch.from_numpy(gaussian_filter(kept.numpy(), (0, *sigmas)))
    return filled


def mean_colour(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean of what is known, everywhere."""
    known = 1 - mask
    return ((image * known).sum((1, 2)) / known.sum())[:, None, None].expand_as(image)


def noise(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Returns noise of deviation about .6: white or somewhat smooth, coloured or grey."""
    shape = image.shape if rng.random() < 0.7 else (1, *image.shape[1:])
    values = rng.normal(size=shape)
    if rng.random() < 0.5:
        values = gaussian_filter(values, (0, *[rng.uniform(0.3, 1.5)] * 2))
    values = 0.6 * values / values.std()
    return torch.tensor(values, dtype=torch.float32).expand_as(image)


def grid(rng: np.random.Generator) -> torch.Tensor:
    """Returns a checkerboard, or tiles with their edges, of a period of 2 to 8 pixels, values -1 and 1."""
    period = int(rng.integers(1, 5))
    y, x = np.mgrid[:SIZE, :SIZE]
    cells = (y // period + x // period) % 2 if rng.random() < 0.6 else (y % (2 * period) == 0) | (x % (2 * period) == 0)
    return torch.tensor(2.0 * cells - 1, dtype=torch.float32)[None]


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Applies a Gaussian blur to [C, h, w]."""
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, sigma, sigma)))
