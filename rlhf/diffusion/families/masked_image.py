"""The condition of networks that read the mask and the masked image beside the latents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from rlhf.diffusion.families.blending import Encoder
from rlhf.diffusion.families.family import cells_of
from rlhf.storage.images import blank_hole

if TYPE_CHECKING:
    from rlhf.data.prompts import Prompt


class MaskedImage:
    """Mask, then masked-image latents: the sibling of `Blending`."""

    @torch.no_grad()
    def encode_prompts(self: Encoder, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Condition [P, 1 + C, h, w], and the hole [P, 1, h, w].

        The condition's mask is sampled as diffusers' pipeline samples it (nearest), so that a policy's folder works
        there; the hole mask of log-probs holds every cell that touches the hole.
        """
        images, masks = self.read(prompts)
        masked = self.encode_images(blank_hole(images, masks))
        condition = self.join_condition(F.interpolate(masks, size=cells_of(masked)), masked)
        return condition, F.adaptive_max_pool2d(masks, cells_of(masked))

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """Mask and masked-image latents as channels side by side."""
        return torch.cat([mask, masked_image_latents], dim=1)

    def known_latents(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None: the network reads the masked image."""
        return None

    def inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Latents and condition side by side."""
        return torch.cat([latents, condition], dim=1)
