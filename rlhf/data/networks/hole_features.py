"""Features of a filled hole: maps of a network at several depths, pooled inside the hole, around it and across it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

VERSION = 1
"""Raised when the numbers change: stored descriptions of pictures are found by it."""
SIDE = 128
"""Short side, in pixels, of the pictures that networks see; smaller ones are enlarged. Finer detail is not seen."""
PER_CHANNEL = 7
"""Number of features per channel of a map."""
PIXEL_CHANNELS = 6
FLOOR = 1e-3
"""Added to standard deviations, in units of the map, before the logarithm."""

Maps = Callable[[torch.Tensor], list[torch.Tensor]]
"""Maps images [B, 3, H, W] in [-1, 1] to feature maps [B, C, h, w], from fine to coarse."""


def describe_hole(maps: Maps, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns features [B, PER_CHANNEL (PIXEL_CHANNELS + sum of C)] of images [B, 3, H, W] in [-1, 1].

    `masks` [B, 1, H, W], 1 = repainted. The picture itself and its fine detail are the first maps.
    """
    count = images_at_once(images.device)
    parts = zip(images.split(count), masks.split(count), strict=True)
    return torch.cat([pool_hole(maps(enlarge(part)), part, own) for part, own in parts])


def images_at_once(device: torch.device) -> int:
    """Number of images to look at together: on a CPU so few that what a layer makes stays in the cache."""
    return 64 if device.type == "cuda" else 8


def pool_hole(found: list[torch.Tensor], images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the features of `describe_hole` from the maps that a network `found` in the enlarged images."""
    images, masks = enlarge(images), enlarge(masks)
    detail = images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.cat([_pool(values, masks) for values in (torch.cat([images, detail], dim=1), *found)], dim=1)


def enlarge(images: torch.Tensor) -> torch.Tensor:
    """Returns images or masks with a short side of SIDE pixels."""
    scale = SIDE / min(images.shape[-2:])
    size = [round(side * scale) for side in images.shape[-2:]]
    if size == list(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=scale < 1, align_corners=False)


def to_imagenet(images: torch.Tensor) -> torch.Tensor:
    """Returns images in [-1, 1] with ImageNet's mean 0 and deviation 1."""
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images + 1) / 2 - mean) / std


def _pool(values: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns, per channel: level in the hole, its signed and absolute distance from the level around the hole, the
    same three of the logarithm of the spread, and the mean step across the border less that beside it.
    """
    hole = F.adaptive_avg_pool2d(masks, (values.shape[-2], values.shape[-1]))
    grown, shrunk = (F.max_pool2d(sign * hole, 5, 1, 2) * sign for sign in (1, -1))
    around = 1 - hole
    inside_level, inside_spread = _moments(values, hole)
    outside_level, outside_spread = _moments(values, around)
    level, spread = inside_level - outside_level, inside_spread - outside_spread
    across = _steps(values, grown - shrunk) - (_steps(values, shrunk) + _steps(values, 1 - grown)) / 2
    return torch.cat([inside_level, level, level.abs(), inside_spread, spread, spread.abs(), across], dim=1)


def _moments(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and logarithm of the standard deviation of values [B, C, h, w], weighted by [B, 1, h, w]."""
    total = weights.sum((2, 3)).clamp(min=1e-3)
    mean = (values * weights).sum((2, 3)) / total
    variance = ((values - mean[..., None, None]).square() * weights).sum((2, 3)) / total
    return mean, (variance.sqrt() + FLOOR).log()


def _steps(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute difference of neighbours [B, C], weighted by [B, 1, h, w]."""
    total = values.new_zeros(values.shape[:2])
    count = values.new_zeros(len(values), 1)
    for dim in (-1, -2):
        low, high = weights.narrow(dim, 0, weights.shape[dim] - 1), weights.narrow(dim, 1, weights.shape[dim] - 1)
        both = torch.minimum(low, high)
        total = total + (values.diff(dim=dim).abs() * both).sum((2, 3))
        count = count + both.sum((2, 3))
    return total / count.clamp(min=1e-3)
