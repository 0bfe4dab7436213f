"""Statistics that compare a filled hole with its surroundings: the input of a reward network from scratch.

They measure how far colours jump across the border and, at four sizes of the image, how colours and texture in the
hole differ from the surroundings' diffused into it. They have no weights, and share no constant with the gold judge,
which sees the hidden original.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

VERSION = 1
"""Raised when the numbers change: stored descriptions of pictures are found by it."""
OCTAVES = 4
CELL = 4
"""Side, in pixels, of the cells in which texture is measured."""
FAINT = 0.01
"""Amplitude below which textures count as equal, in units of images in [-1, 1]."""
COUNT = 6 + OCTAVES * 18
"""Number of statistics per image."""


def hole_statistics(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns statistics [B, COUNT] of images [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W], 1 = repainted.

    H and W are multiples of 8.
    """
    colours, hole = _to_ycbcr(images), masks
    numbers = [_mean(colours.diff(dim=dim).abs(), hole.diff(dim=dim).abs()) for dim in (-1, -2)]
    for octave in range(OCTAVES):
        if octave:
            colours, hole = F.avg_pool2d(colours, 2), F.avg_pool2d(hole, 2)
        cell = max(1, CELL >> octave)
        energies = (colours - _smooth(colours)).square()
        numbers += _compare(colours, hole, cell, blur=0, measure=lambda colour: colour)
        numbers += _compare(energies, hole, cell, blur=1, measure=lambda energy: (energy.sqrt() + FAINT).log())
    return torch.cat(numbers, dim=1)


def _compare(
    values: torch.Tensor, hole: torch.Tensor, cell: int, *, blur: int, measure: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """Returns the hole's level, and its signed and absolute difference from the expected level; [B, C] each."""
    inside, share = _pool(values, hole, cell)
    outside, rest = _pool(values, 1 - hole, cell)
    difference = measure(_diffuse(inside, share, blur)) - measure(_diffuse(outside, rest, 3))
    return [measure(_mean(values, hole)), _mean(difference, share), _mean(difference.abs(), share)]


def _to_ycbcr(images: torch.Tensor) -> torch.Tensor:
    """Converts RGB to luminance and two colour differences (ITU-R BT.601)."""
    weights = images.new_tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
    return torch.einsum("bchw,dc->bdhw", images, weights).contiguous()


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the mean over pixels [B, C] of values [B, C, h, w], weighted by [B, 1, h, w]."""
    total = torch.bmm(values.flatten(2), weights.flatten(2).transpose(1, 2))[..., 0]
    return total / weights.sum((2, 3)).clamp(min=1e-3)


def _smooth(values: torch.Tensor) -> torch.Tensor:
    """Averages over 3x3 pixels, with repeated borders."""
    return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _pool(values: torch.Tensor, weights: torch.Tensor, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weighted means over square cells, and the means of the weights."""
    if cell == 1:
        return values, weights
    share = F.avg_pool2d(weights, cell)
    return F.avg_pool2d(values * weights, cell) / share.clamp(min=1e-2), share


def _diffuse(values: torch.Tensor, weights: torch.Tensor, passes: int) -> torch.Tensor:
    """Spreads values from pixels of high weight to pixels of low weight."""
    total = values * weights
    for _ in range(passes):
        total, weights = _smooth(total), _smooth(weights)
    return total / weights.clamp(min=1e-4)
