"""The known image for networks that do not read it: after each step its latents take their place outside the hole."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from rlhf.diffusion.families.family import cells_of
from rlhf.storage.images import to_8bit

if TYPE_CHECKING:
    from rlhf.data.prompts import Prompt


class Encoder(Protocol):
    """What a family has beside `Blending` or `MaskedImage`."""

    def read(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Images [P, 3, H, W] and binary masks [P, 1, H, W]."""

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""


class BlendingEncoder(Encoder, Protocol):
    """What a family has beside `Blending`."""

    resizing: str


class Blending:
    """The condition of a text-to-image network, which never sees the mask: the hole, then the known image's latents."""

    resizing = "nearest"
    """How diffusers' class brings masks to latent cells, by the names of torch's `interpolate`."""

    @torch.no_grad()
    def encode_prompts(self: BlendingEncoder, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Condition [P, 1 + C, h, w], and the hole [P, 1, h, w]."""
        images, masks = self.read(prompts)
        known = self.encode_images(extend_into_hole(images, masks))
        hole = hole_cells(masks, cells_of(known), self.resizing)
        return self.join_condition(hole, known), hole

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """The hole and the known image's latents side by side."""
        return torch.cat([mask, masked_image_latents], dim=1)

    def known_latents(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ModelFamily`."""
        return condition[:, :1], condition[:, 1:]

    def inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The latents alone."""
        return latents


def extend_into_hole(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] whose hole pixels (mask 1, [B, 1, H, W]) have the colour of the nearest known pixel.

    An encoder sees across the hole's border: this way the latents of known cells depend on known pixels alone, and not
    on what lay in the hole. An image without a known pixel stays as it is.
    """
    from scipy.ndimage import distance_transform_edt  # Processes that paint masked images need not load scipy.

    extended = images.clone()
    for i, mask in enumerate(masks[:, 0].cpu().numpy() >= 0.5):
        if not mask.all():
            rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
            extended[i] = images[i][:, torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(columns)]
    return extended


def known_picture(prompt: "Prompt") -> torch.Tensor:
    """What is known of a prompt's image, uint8 [3, H, W], with the nearest known colours in the hole."""
    mask = (prompt.mask >= 0.5).float()
    return to_8bit(extend_into_hole(prompt.image[None], mask[None])[0])


def hole_cells(masks: torch.Tensor, cells: tuple[int, int], resizing: str = "nearest") -> torch.Tensor:
    """Masks [B, 1, H, W] in latent cells, [B, 1, h, w]: resized as diffusers' pipelines do it.

    A hole that would vanish is held by every cell that it touches.
    """
    resized = F.interpolate(masks, size=cells, mode=resizing)
    vanished = resized.flatten(1).sum(1).view(-1, 1, 1, 1) == 0
    return torch.where(vanished, F.adaptive_max_pool2d(masks, cells), resized)
