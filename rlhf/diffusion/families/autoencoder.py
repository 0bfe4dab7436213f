"""The way between images and latents of families with diffusers' AutoencoderKL."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhf.diffusion.families.pipeline_folder import read_part_config

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PIXELS_AT_ONCE = {"cuda": 2**22, "cpu": 2**16}
"""Pixels that a VAE takes at once, by device. On a GPU 16 images of 512 px: with twice as many, a tensor in SD's VAE
has 2^31 elements. On a CPU 16 images of 64 px: with more, what a layer makes does not stay in the cache."""


@torch.no_grad()
def encode(vae: "AutoencoderKL", images: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1], shifted and scaled: the posterior's mode."""
    latents = in_parts(lambda part: vae.encode(part).latent_dist.mode(), images.to(vae.device), 1)
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: "AutoencoderKL", latents: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] of latents [B, C, h, w], decoded in parts that fit the VAE."""
    moved = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return in_parts(lambda part: vae.decode(part).sample, moved, factor_of(vae))


def in_parts(run: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, factor: int) -> torch.Tensor:
    """What `run`, a VAE's encoder or decoder, makes of a batch [B, ..., h, w] of images or latents, in float32.

    `factor` is the number of pixels on the side of a cell of the batch: 1 for images.
    """
    pixels = batch.shape[-2] * batch.shape[-1] * factor**2
    most = PIXELS_AT_ONCE.get(batch.device.type, PIXELS_AT_ONCE["cuda"])
    return torch.cat([run(part).float() for part in batch.split(max(1, most // pixels))])


def factor_of(vae: "AutoencoderKL") -> int:
    """Pixels on the side of a latent cell."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def read_factor(place: Path) -> int:
    """`factor_of` the VAE of a pipeline, from its configuration alone."""
    return 2 ** (len(read_part_config(place, "vae", "config.json")["block_out_channels"]) - 1)
