"""Likeness to the original: a measure that compares a filled hole with what is hidden there, and needs no network.

It does not compare pixel by pixel. A fill is alike if it continues edges, matches local texture and colours, and has no
seam that the original lacks. It forgives blur: a smooth fill scores higher than a sharp one of other content.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

STRUCTURE_WEIGHT, TEXTURE_WEIGHT, COLOUR_WEIGHT, SEAM_WEIGHT = 0.25, 0.40, 0.20, 0.15
ENERGY_FLOOR = 0.02
"""Share of the grey range below which band energies look alike."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Likenesses of a batch of inpaintings, each [B], in [0, 1]; the original's is 1."""

    structure: torch.Tensor
    texture: torch.Tensor
    overall: torch.Tensor


def likeness(images: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> Likeness:
    """Compares inpaintings with the originals.

    Shapes: images, originals [B, 3, H, W] in [-1, 1]; masks [B, 1, H, W], 1 = repainted.

    - structure: agreement of luminance gradients, as vectors, at three scales (the similarity of
      GMSD, arXiv:1308.3052, with the dot product in place of the product of magnitudes);
    - texture: ratio of local energies, inside the hole, in three band-passes of luminance and two colour differences;
    - colour: distance of local means;
    - seam: the jump across the hole's border against the jump that the original has there.
    """
    structure = _structure(images, originals, masks)
    texture = _texture(images, originals, masks)
    colour = torch.exp(-_mean(_blur(images - originals, 3.0).square().sum(1, keepdim=True).sqrt(), masks) / 0.35)
    seam = _seam(images, originals, masks)
    overall = STRUCTURE_WEIGHT * structure + TEXTURE_WEIGHT * texture + COLOUR_WEIGHT * colour + SEAM_WEIGHT * seam
    return Likeness(structure=structure, texture=texture, overall=overall)


def sharpness(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the mean absolute Laplacian of the luminance inside the hole, [B]; blur lowers it."""
    grey = _luminance(images)
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return _mean(F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernel).abs(), masks)


def _luminance(images: torch.Tensor) -> torch.Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return ((images + 1) / 2 * weights).sum(1, keepdim=True)


def _opponent(images: torch.Tensor) -> torch.Tensor:
    """Returns luminance, red-green and blue-yellow, [B, 3, H, W]."""
    red, green, blue = ((images + 1) / 2).unbind(1)
    return torch.cat([_luminance(images), (red - green)[:, None], (blue - (red + green) / 2)[:, None]], dim=1)


def _mean(values: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return (values * masks).flatten(1).sum(1) / masks.flatten(1).sum(1).clamp(min=1e-6)


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Applies a Gaussian blur with reflected borders."""
    radius = min(int(3 * sigma + 0.5), images.shape[-1] - 1, images.shape[-2] - 1)
    x = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    channels = images.shape[1]
    rows = F.conv2d(
        F.pad(images, (radius, radius, 0, 0), mode="reflect"), kernel.expand(channels, -1, -1, -1), groups=channels
    )
    columns = kernel.transpose(2, 3).expand(channels, -1, -1, -1)
    return F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="reflect"), columns, groups=channels)


def _gradients(grey: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    padded = F.pad(grey, (1, 1, 1, 1), mode="reflect")
    return (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _structure(images: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    scores = []
    for sigma in (1.0, 2.0, 4.0):
        ax, ay = _gradients(_blur(_luminance(images), sigma))
        bx, by = _gradients(_blur(_luminance(originals), sigma))
        floor = (0.02 / sigma) ** 2
        similarity = (2 * (ax * bx + ay * by) + floor) / (ax**2 + ay**2 + bx**2 + by**2 + floor)
        scores.append(_mean(similarity, masks))
    return (torch.stack(scores).mean(0).clamp(-1, 1) + 1) / 2


def _texture(images: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    a, b = _opponent(images), _opponent(originals)
    share = _blur(masks, 4.0).clamp(min=1e-4)
    weights = images.new_tensor([2.0, 0.5, 0.5]).view(1, 3, 1, 1)
    scores = []
    for inner, outer in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0)):
        energies = []
        for channels in (a, b):
            band = (_blur(channels, inner) if inner else channels) - _blur(channels, outer)
            energies.append((_blur(band.square() * masks, 4.0) / share).clamp(min=0).sqrt())
        ratio = ((energies[0] + ENERGY_FLOOR) / (energies[1] + ENERGY_FLOOR)).log().abs()
        scores.append(_mean(torch.exp(-(ratio * weights).sum(1, keepdim=True)), masks))
    return torch.stack(scores).mean(0)


def _seam(images: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns exp(-|extra jump| / 0.1), averaged over pixel pairs across the border of the hole."""
    total, count = images.new_zeros(len(images)), images.new_zeros(len(images))
    for dim in (-1, -2):
        is_border = masks.diff(dim=dim).abs()
        extra = (images.diff(dim=dim) - originals.diff(dim=dim)).abs().mean(1, keepdim=True) / 2
        total += (extra * is_border).flatten(1).sum(1)
        count += is_border.flatten(1).sum(1)
    return torch.exp(-total / count.clamp(min=1) / 0.1)
