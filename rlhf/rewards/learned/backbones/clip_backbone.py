"""CLIP backbone, which embeds an inpainting twice: as it is, and with its hole blanked."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf.rewards.clip_model import MEAN, STD, squeeze
from rlhf.storage.images import blank_hole

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

PAPER_FROZEN_SHARE = 0.7
"""Share of CLIP's layers that are not trained (PrefPaint, section 5)."""


class ClipBackbone(nn.Module):
    """CLIP vision tower on the inpainting and on the masked image, concatenated (PrefPaint, section 5)."""

    code_version: tuple[int, ...] = (1,)
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        tower: "CLIPVisionModel | CLIPVisionModelWithProjection",
        frozen_share: float = PAPER_FROZEN_SHARE,
        *,
        hole_value: float = 0.0,
    ) -> None:
        """Wraps a tower, and freezes its first layers.

        Args:
            tower: gives its projected embedding if it has one, else its pooled output.
            frozen_share: share of the layers, from the first, that are not trained, nor the embeddings below them;
                at 1 the whole tower is fixed.
            hole_value: value in [-1, 1] that fills the hole of the masked image.
        """
        super().__init__()
        self.tower = tower
        self.hole_value = hole_value
        _freeze(tower, frozen_share)
        has_projection = hasattr(tower, "visual_projection")
        self.output_dim = 2 * (tower.config.projection_dim if has_projection else tower.config.hidden_size)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Embeds images [B, 3, H, W] in [-1, 1] with masks [B, 1, H, W]: [B, output_dim]."""
        both = [self._embed(x) for x in (images, blank_hole(images, masks, self.hole_value))]
        return torch.cat(both, dim=1)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Returns images as CLIP's input [B, 3, S, S], normalised by the constants that are saved with the weights."""
        return (squeeze(images, self.tower.config.image_size) - self.mean) / self.std

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        output = self.tower(pixel_values=self.pixels(images))
        return output.image_embeds if hasattr(output, "image_embeds") else output.pooler_output


def _freeze(tower: "CLIPVisionModel | CLIPVisionModelWithProjection", share: float) -> None:
    """Freezes the first `share` of the layers and the embeddings below them; at 1 the whole tower."""
    vision = tower.vision_model if hasattr(tower, "vision_model") else tower
    layers = vision.encoder.layers
    frozen = round(share * len(layers))
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    if frozen:
        vision.embeddings.requires_grad_(False)
        vision.pre_layrnorm.requires_grad_(False)
    if share == 1:
        tower.requires_grad_(False)
