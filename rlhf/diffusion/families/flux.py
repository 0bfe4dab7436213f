"""FLUX.1: Fill, whose transformer reads latents, masked image and mask, and the text-to-image model by blending.

Two by two latent cells are packed into one token. The networks predict the velocity of flow matching.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from rlhf.diffusion.families.autoencoder import decode, encode, factor_of
from rlhf.diffusion.families.blending import extend_into_hole, hole_cells
from rlhf.diffusion.families.family import TextEmbedding, cells_of
from rlhf.diffusion.steps.flow_matching import FlowSchedule, make_flow_schedule
from rlhf.errors import UserError
from rlhf.storage.images import blank_hole

if TYPE_CHECKING:
    import numpy as np
    from diffusers import FluxFillPipeline, FluxInpaintPipeline, FluxTransformer2DModel

    from rlhf.data.prompts import Prompt

PATCH = 2
"""Latent cells on the side of a token."""


class Flux:
    """What FLUX.1's pipelines have in common; a `ModelFamily` but for the condition."""

    network_name = "transformer"
    default_guidance: float
    """Default scale of the pipeline's class, which a guidance-distilled network is told."""

    def __init__(self, pipeline: "FluxFillPipeline | FluxInpaintPipeline", guidance: float | None = None) -> None:
        """Wrap a pipeline; `guidance` takes the place of the default scale."""
        self.pipeline = pipeline
        self._guidance = self.default_guidance if guidance is None else guidance

    @property
    def network(self) -> "FluxTransformer2DModel":
        """The transformer."""
        return self.pipeline.transformer

    @network.setter
    def network(self, network: "FluxTransformer2DModel") -> None:
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

    @torch.no_grad()
    def embed(self, text: str) -> TextEmbedding:
        """CLIP's pooled embedding and T5's tokens, as many as T5's tokenizer reads, at most 512."""
        embedding, pooled, _ = self.pipeline.encode_prompt(
            text,
            None,
            device=self.device,
            max_sequence_length=min(512, self.pipeline.tokenizer_2.model_max_length),
        )
        return TextEmbedding(embedding=embedding.float(), pooled=pooled.float())

    def _read(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Images [P, 3, H, W] and binary masks [P, 1, H, W]; raises UserError if they do not fill whole tokens."""
        height, width, cell = *prompts[0].mask.shape[-2:], factor_of(self.pipeline.vae)
        if height % (PATCH * cell) or width % (PATCH * cell):
            raise UserError(
                f"prompts of {width}x{height} px: this model paints multiples of {PATCH * cell} px; "
                "cut others with --set prompts.size_px, or name another model"
            )
        images = torch.stack([p.image for p in prompts]).to(self.device)
        masks = torch.stack([p.mask for p in prompts]).to(self.device)
        return images, (masks >= 0.5).float()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return encode(self.pipeline.vae, images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return decode(self.pipeline.vae, latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ModelFamily`."""
        return self.pipeline.vae.config.latent_channels, height, width

    def schedule(self, num_inference_steps: int, cells: tuple[int, int]) -> FlowSchedule:
        """The levels of the pipeline's own scheduler; a dynamic shift depends on the number of tokens."""
        tokens = (cells[0] // PATCH) * (cells[1] // PATCH)
        return make_flow_schedule(self.pipeline.scheduler, num_inference_steps, tokens=tokens)

    def predict(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
        precision: str,
    ) -> torch.Tensor:
        """One forward pass over all tokens of `_inputs`, packed and numbered as the pipeline's class does it."""
        assert text.pooled is not None, "FLUX reads a pooled embedding"
        count, _, height, width = latents.shape
        tokens = F.pixel_unshuffle(self._inputs(latents, condition), PATCH).flatten(2).transpose(1, 2)
        rows, columns = height // PATCH, width // PATCH
        positions = self.pipeline._prepare_latent_image_ids(count, rows, columns, latents.device, latents.dtype)
        is_told = self.network.config.guidance_embeds
        guidance = torch.full((count,), self._guidance, device=latents.device) if is_told else None
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = network(
                hidden_states=tokens,
                timestep=timestep / 1000,
                guidance=guidance,
                pooled_projections=text.pooled.expand(count, -1),
                encoder_hidden_states=text.embedding.expand(count, -1, -1),
                txt_ids=torch.zeros(text.embedding.shape[1], 3, device=latents.device),
                img_ids=positions,
                return_dict=False,
            )[0]
        return F.pixel_shuffle(output.float().transpose(1, 2).unflatten(2, (rows, columns)), PATCH)

    def _inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def find_unsafe(self, pixels: "np.ndarray") -> list[bool]:
        """FLUX's pipelines have no safety checker."""
        return []


class FluxFill(Flux):
    """The `ModelFamily` of FluxFillPipeline. Condition: masked-image latents, then each cell's f x f mask pixels."""

    default_guidance = 30.0

    @torch.no_grad()
    def encode_prompts(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Condition [P, C + f^2, h, w]; every cell that touches the hole is in the hole's mask."""
        images, masks = self._read(prompts)
        masked = self.encode_images(blank_hole(images, masks))
        condition = torch.cat([masked, F.pixel_unshuffle(masks, factor_of(self.pipeline.vae))], dim=1)
        return condition, F.adaptive_max_pool2d(masks, masked.shape[-2:])

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """All pixels of a cell have the cell's mask."""
        pixels = factor_of(self.pipeline.vae) ** 2
        return torch.cat([masked_image_latents, mask.expand(-1, pixels, -1, -1)], dim=1)

    def known_latents(self, condition: torch.Tensor) -> None:
        """None: the transformer reads the masked image."""

    def _inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.cat([latents, condition], dim=1)


class FluxBlend(Flux):
    """The `ModelFamily` of FluxInpaintPipeline: a text-to-image network that never sees the mask."""

    default_guidance = 7.0

    @torch.no_grad()
    def encode_prompts(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Condition [P, 1 + C, h, w]: the hole, then the known image's latents."""
        images, masks = self._read(prompts)
        known = self.encode_images(extend_into_hole(images, masks))
        hole = hole_cells(masks, cells_of(known))
        return self.join_condition(hole, known), hole

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """The hole and the known image's latents side by side."""
        return torch.cat([mask, masked_image_latents], dim=1)

    def known_latents(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ModelFamily`."""
        return condition[:, :1], condition[:, 1:]

    def _inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return latents
