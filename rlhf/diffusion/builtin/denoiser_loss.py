"""Computes the loss of the built-in denoiser, with the packing of FLUX.1 Fill."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel

from rlhf.diffusion.builtin.base_denoisers import TEXT_TOKENS, transformer_pipeline
from rlhf.diffusion.builtin.base_vae import FACTOR

KNOWN_WEIGHT = 0.2
"""Weight of known cells in the loss; cells that touch the hole have weight 1, since known pixels are composited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentBatch:
    """Encoded crops with holes."""

    latents: torch.Tensor
    """[B, 16, h, w], scaled."""
    masks: torch.Tensor
    """[B, 1, 4 h, 4 w], 1 = repaint."""
    masked_image_latents: torch.Tensor
    """[B, 16, h, w], scaled, of the image with its hole set to 0."""

    @property
    def weights(self) -> torch.Tensor:
        """[B, 1, h, w]: 1 for cells that touch the hole, `KNOWN_WEIGHT` for others."""
        return KNOWN_WEIGHT + (1 - KNOWN_WEIGHT) * F.max_pool2d(self.masks, FACTOR)


Loss = Callable[[LatentBatch, torch.Generator], torch.Tensor]
"""Maps a batch and a source of noise to the loss, a scalar."""


def transformer_loss(transformer: FluxTransformer2DModel, vae: torch.nn.Module) -> Loss:
    """Returns the loss of flow matching (arXiv:2210.02747): the network predicts the velocity noise - latents.

    The input is x = (1 - sigma) latents + sigma noise. Half of the sigmas are uniform, half logit-normal
    (arXiv:2403.03206), which favours the middle.
    """
    pipeline = transformer_pipeline(vae, transformer)
    with torch.no_grad():
        text, pooled, text_ids = pipeline.encode_prompt(prompt="", prompt_2=None, max_sequence_length=TEXT_TOKENS)

    def loss(batch: LatentBatch, generator: torch.Generator) -> torch.Tensor:
        """Returns the weighted mean squared error of the velocity."""
        latents, count = batch.latents, len(batch.latents)
        noise = torch.randn(latents.shape, generator=generator)
        uniform = _strata(count, generator)
        is_normal = torch.rand(count, generator=generator) < 0.5
        sigma = torch.where(is_normal, torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).sigmoid(), uniform)
        noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
        condition = [pack(batch.masked_image_latents), pack(F.pixel_unshuffle(batch.masks, FACTOR))]
        predicted = transformer(
            hidden_states=torch.cat([pack(noisy), *condition], dim=2),
            timestep=sigma,
            pooled_projections=pooled.expand(count, -1),
            encoder_hidden_states=text.expand(count, -1, -1),
            txt_ids=text_ids,
            img_ids=image_ids(*latents.shape[-2:]),
        ).sample
        error = (predicted - pack(noise - latents)).square()
        return _weighted_mean(error, pack(batch.weights.expand_as(latents)))

    return loss


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Joins four neighbours to one token, as FLUX does: [B, C, h, w] to [B, h w / 4, 4 C]."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def image_ids(height: int, width: int) -> torch.Tensor:
    """Returns the places (0, row, column) of the tokens of latents [height, width]: [tokens, 3]."""
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).float()


def _strata(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws one uniform number from each of `count` equal parts of (0, 1), in random order: [count]."""
    parts = torch.randperm(count, generator=generator)
    return (parts + torch.rand(count, generator=generator)) / count


def _weighted_mean(error: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    weights = weights.expand_as(error)
    return (error * weights).sum() / weights.sum()
