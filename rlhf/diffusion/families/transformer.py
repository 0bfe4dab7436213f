"""What families with a diffusion transformer and an AutoencoderKL have in common."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rlhf.diffusion.families.autoencoder import decode, encode, factor_of
from rlhf.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from rlhf.data.prompts import Prompt


class TransformerFamily:
    """A `ModelFamily` but for text, condition, schedule and forward pass."""

    network_name = "transformer"
    patch = 2
    """Latent cells on the side of a token."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def network(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    @network.setter
    def network(self, network: torch.nn.Module) -> None:
        self.pipeline.transformer = network

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return self.network.device

    @property
    def native_px(self) -> int:
        """Side of the square images that the VAE was made for: a transformer is not bound to one size."""
        return int(self.pipeline.vae.config.sample_size)

    @property
    def native_cells(self) -> int:
        """The same side in latent cells."""
        return self.native_px // factor_of(self.pipeline.vae)

    def read(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Images [P, 3, H, W] and binary masks [P, 1, H, W]; raises UserError if they do not fill whole tokens."""
        height, width = prompts[0].mask.shape[-2:]
        side = self.patch * factor_of(self.pipeline.vae)
        if height % side or width % side:
            raise UserError(
                f"prompts of {width}x{height} px: this model paints multiples of {side} px; "
                "cut others with --set prompts.size_px, or name another model"
            )
        images = torch.stack([p.image for p in prompts]).to(self.device)
        masks = torch.stack([p.mask for p in prompts]).to(self.device)
        return images, (masks >= 0.5).float()

    def inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Channels [B, K, h, w] that the network reads, before they are packed."""
        raise NotImplementedError

    def count_tokens(self, cells: tuple[int, int]) -> int:
        """Number of tokens of an image of height x width latent cells."""
        return (cells[0] // self.patch) * (cells[1] // self.patch)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return encode(self.pipeline.vae, images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return decode(self.pipeline.vae, latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ModelFamily`."""
        return self.pipeline.vae.config.latent_channels, height, width

    def find_unsafe(self, pixels: "np.ndarray") -> list[bool]:
        """These pipelines have no safety checker."""
        return []
