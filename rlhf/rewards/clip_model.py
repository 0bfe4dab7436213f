"""CLIP's input and its models, for scores of texts, aesthetic scores, distances of sets and backbones of rewards."""

from typing import Any

import torch
import torch.nn.functional as F

from rlhf.data.networks.pretrained import load_whole
from rlhf.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of CLIP's training images in [0, 1], by channel."""


def squeeze(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes images [B, 3, H, W] in [-1, 1] to [B, 3, size, size] in [0, 1] (bicubic, antialiased, as PIL does).

    CLIP's own preprocessing crops images that are not square. Here they are squeezed, since the hole may lie at
    the border.
    """
    resized = F.interpolate((images + 1) / 2, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def clip_pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns images [B, 3, H, W] in [-1, 1] as CLIP's input [B, 3, size, size]: squeezed and normalised."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (squeeze(images, size) - mean) / std


def load_clip(architecture: type, path: str, name: str, device: torch.device) -> Any:
    """Loads a CLIP model of the class `architecture` from a folder or the hub, frozen and in evaluation mode.

    Raises UserError, which begins with `name`, if the model is not there or lacks tensors.
    """
    try:
        model = load_whole(architecture, path)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name}: {path}: no {architecture.__name__} could be loaded ({reason}); name a folder or hub repository "
            "that holds one whole"
        ) from error
    return model.to(device).eval().requires_grad_(False)
