"""Builds the VAE of the built-in base models: 16 channels at factor 4, initialised with principal components.

It is an `AutoencoderKL`, which any diffusers pipeline opens. `start_linear` sets its weights: the encoder computes the
principal components of 4x4 patches, and the decoder (`phase_start.py`) inverts it. The encoder stays fixed; training
makes the decoder better than the linear inverse.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from rlhf.diffusion.builtin.phase_start import carry, keep_scale, place, start_decoder

LATENT_CHANNELS = 16
FACTOR = 4


def build_vae(channels: tuple[int, int, int] = (32, 72, 96)) -> AutoencoderKL:
    """Builds the autoencoder with torch's initial weights: images [B, 3, H, W] to latents [B, 16, H/4, W/4]."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        act_fn="relu",
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
        mid_block_add_attention=False,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def principal_components(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean [48] of the 4x4 patches of `images` [B, 3, H, W], and the map [16, 48] to their components.

    The 48 numbers of a patch are in the order of `pixel_unshuffle`: colour, row, column. Component i has deviation s_i
    and is divided by sqrt(s_i), half way to whitening. Whitened latents would give noise-like detail the weight of
    colour; in unscaled latents the sampler's last noise would hide detail. The mean square of all components is 1.
    """
    patches = F.pixel_unshuffle(images, FACTOR).permute(0, 2, 3, 1).reshape(-1, 48).double()
    variances, vectors = torch.linalg.eigh(torch.cov(patches.T))
    order = variances.argsort(descending=True)[:LATENT_CHANNELS]
    deviations = variances[order].clamp(min=1e-8).sqrt()
    maps = vectors[:, order].T / deviations.sqrt()[:, None]
    return patches.mean(0).float(), (maps / deviations.mean().sqrt()).float()


@torch.no_grad()
def start_linear(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Sets the encoder to the principal components of the patches of `images`, and the decoder to their inverse."""
    for name, module in vae.named_modules():
        if name.endswith(".conv2"):
            module.weight.zero_()
            module.bias.zero_()
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        carry(convolution, convolution.out_channels)
    mean, maps = principal_components(images)
    _start_encoder(vae, mean, maps)
    start_decoder(vae.decoder, mean, torch.linalg.pinv(maps))


def _start_encoder(vae: AutoencoderKL, mean: torch.Tensor, maps: torch.Tensor) -> None:
    """Sets both strided convolutions to gather pixels into channels; the second projects, and blocks pass values on."""
    encoder: Any = vae.encoder
    first, second, third = encoder.down_blocks
    for module in (encoder.conv_in, first.downsamplers[0].conv, second.downsamplers[0].conv, encoder.conv_out):
        module.weight.zero_()
        module.bias.zero_()
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1
    for row in range(2):
        for column in range(2):
            phase = row * 2 + column
            first.downsamplers[0].conv.weight[range(phase, 12, 4), range(3), row, column] = 1
    carry(second.resnets[0].conv_shortcut, 12)
    projecting = second.downsamplers[0].conv
    projecting.weight[:LATENT_CHANNELS, :12, :2, :2] = _by_quarter(maps)
    projecting.bias[:LATENT_CHANNELS] = -maps @ mean
    # Each component passes the last norm and activation as a pair of opposite signs: silu(a) - silu(-a) = a.
    pairs, norm = third.resnets[0].conv_shortcut, encoder.conv_norm_out
    pairs.weight.zero_()
    pairs.bias.zero_()
    for channel in range(LATENT_CHANNELS):
        for index, sign in ((2 * channel, 1.0), (2 * channel + 1, -1.0)):
            pairs.weight[place(norm, index), channel] = sign
            encoder.conv_out.weight[channel, place(norm, index), 1, 1] = sign
    keep_scale(pairs, norm, 100.0)
    encoder.conv_out.bias[LATENT_CHANNELS:] = -12.0


def _by_quarter(maps: torch.Tensor) -> torch.Tensor:
    """Splits maps of patches [K, 48] into maps of the four quarters of the patch [K, 12, 2, 2].

    The 12 numbers of a quarter are colour, row, column within it; the last two axes are its place in the patch.
    """
    by_pixel = maps.view(-1, 3, 2, 2, 2, 2)  # [K, colour, quarter's row, row, quarter's column, column]
    return by_pixel.permute(0, 1, 3, 5, 2, 4).reshape(-1, 12, 2, 2)
