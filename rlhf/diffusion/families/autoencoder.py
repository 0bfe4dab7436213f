"""The way between images and latents of families with diffusers' AutoencoderKL."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlhf.diffusion.families.pipeline_folder import read_part_config

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DECODED_PIXELS = 2**22
"""Pixels decoded at once, 16 images of 512 px: with twice as many, a tensor inside SD's VAE has 2^31 elements."""


@torch.no_grad()
def encode(vae: "AutoencoderKL", images: torch.Tensor) -> torch.Tensor:
    """Latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1], shifted and scaled: the posterior's mode."""
    latents = vae.encode(images.to(vae.device)).latent_dist.mode()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: "AutoencoderKL", latents: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] of latents [B, C, h, w], decoded in parts that fit the VAE."""
    moved = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return in_parts(lambda part: vae.decode(part).sample, moved, factor_of(vae))


def in_parts(run: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, factor: int) -> torch.Tensor:
    """The float32 images that `run`, a VAE's decoder of this factor, makes of latents [B, ..., h, w]."""
    pixels = latents.shape[-2] * latents.shape[-1] * factor**2
    return torch.cat([run(part).float() for part in latents.split(max(1, DECODED_PIXELS // pixels))])


def factor_of(vae: "AutoencoderKL") -> int:
    """Pixels on the side of a latent cell."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def read_factor(place: Path) -> int:
    """`factor_of` the VAE of a pipeline, from its configuration alone."""
    return 2 ** (len(read_part_config(place, "vae", "config.json")["block_out_channels"]) - 1)
