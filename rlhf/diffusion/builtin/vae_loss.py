"""Computes the training loss of the base models' VAE decoder."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

NOISE = 0.03
"""Standard deviation of the noise added to latents in training, so that small errors of a denoiser do not show."""
ENERGY_WEIGHT = 1.0
"""Weight of the local energies of detail; they are about a tenth of the initial loss."""


def decoder_loss(vae: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the distance of decoded latents from the images [B, 3, H, W]: pixels, gradients, Laplacian, energies.

    The first three are mostly L1. They draw the decoder towards the median, which is smooth where the latents do not
    determine the detail. The local energies of detail counteract this.
    """
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
    noise = torch.randn(latents.shape, generator=generator)
    decoded = vae.decode(latents + NOISE * noise).sample
    error = decoded - images
    loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * F.avg_pool2d(error, 4).abs().mean()
    loss = loss + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    loss = loss + 0.1 * _laplacian(error).abs().mean()
    return loss + ENERGY_WEIGHT * (_local_energy(decoded) - _local_energy(images)).abs().mean()


def _laplacian(images: torch.Tensor) -> torch.Tensor:
    """Returns the pixels minus the mean of their four neighbours, [B, 3, H - 2, W - 2]."""
    around = images[..., :-2, 1:-1] + images[..., 2:, 1:-1] + images[..., 1:-1, :-2] + images[..., 1:-1, 2:]
    return images[..., 1:-1, 1:-1] - around / 4


def _local_energy(images: torch.Tensor) -> torch.Tensor:
    """Returns the root mean square of the Laplacian in 8x8 windows."""
    return (F.avg_pool2d(_laplacian(images).square(), 8, 4) + 1e-5).sqrt()
