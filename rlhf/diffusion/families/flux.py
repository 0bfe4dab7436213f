"""FLUX.1: Fill, whose transformer reads latents, masked image and mask, and the text-to-image model by blending.

Two by two latent cells are packed into one token. The networks predict the velocity of flow matching.
"""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import factor_of, read_factor
from rlhf.diffusion.families.blending import Blending
from rlhf.diffusion.families.family import Sides, TextEmbedding, cells_of, zero_text
from rlhf.diffusion.families.masked_image import MaskedImage
from rlhf.diffusion.families.pipeline_folder import Part, check_channels, load_pipeline, read_index, read_part_config
from rlhf.diffusion.families.transformer import (
    NETWORKS,
    PARTS,
    SCHEDULERS,
    TokenFamily,
    read_evenly_shifted,
    read_native_cells,
)
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.storage.images import blank_hole

if TYPE_CHECKING:
    from diffusers import (
        FluxFillPipeline,
        FluxInpaintPipeline,
    )

    from rlhf.data.prompts import Prompt


CLASSES = {
    "_class_name": ("FluxFillPipeline", "FluxInpaintPipeline", "FluxPipeline"),
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": SCHEDULERS,
}
LORA_TARGETS: tuple[str, ...] = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
)
"""Modules that get an adapter by default: attention and feed-forward layers of both kinds of blocks."""
TEXT_OPTIONS = {"length": 512}
"""Most tokens of a text, if T5's tokenizer reads as many."""


class Flux(TokenFamily):
    """What FLUX.1's pipelines have in common; a `ModelFamily` but for the condition."""

    lora_targets = LORA_TARGETS
    default_scale = 1.0
    default_told: float
    """Scale that a guidance-distilled network is told by default."""
    text_length = TEXT_OPTIONS["length"]
    """Most tokens of a text."""

    def __init__(self, pipeline: "FluxFillPipeline | FluxInpaintPipeline", told: float | None = None) -> None:
        """Wrap a pipeline; `told` takes the place of the default."""
        super().__init__(pipeline)
        self._told = self.default_told if told is None else told

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """CLIP's pooled embedding and T5's tokens."""
        embedding, pooled, _ = self.pipeline.encode_prompt(
            text,
            None,
            device=self.device,
            max_sequence_length=min(self.text_length, self.pipeline.tokenizer_2.model_max_length),
        )
        return TextEmbedding(embedding=embedding.float(), pooled=pooled.float())

    def longest_text(self) -> TextEmbedding:
        """T5's tokens, as many as it reads."""
        config = self.network.config
        return zero_text(self.text_length, config.joint_attention_dim, config.pooled_projection_dim, self.device)

    def arguments(self, latents: torch.Tensor, text: TextEmbedding) -> dict[str, Any]:
        """Pooled texts, the scale that the network is told, and positions of texts and latents."""
        assert text.pooled is not None, "FLUX reads a pooled embedding"
        count, _, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        is_told = self.network.config.guidance_embeds
        return {
            "guidance": torch.full((count,), self._told, device=latents.device) if is_told else None,
            "pooled_projections": text.pooled,
            "txt_ids": torch.zeros(text.embedding.shape[1], 3, device=latents.device),
            "img_ids": self.pipeline._prepare_latent_image_ids(count, rows, columns, latents.device, latents.dtype),
        }


class FluxFill(MaskedImage, Flux):
    """The `ModelFamily` of FluxFillPipeline. Condition: masked-image latents, then each cell's f x f mask pixels."""

    default_told = 30.0

    @torch.no_grad()
    def encode_prompts(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Condition [P, C + f^2, h, w]; every cell that touches the hole is in the hole's mask."""
        images, masks = self.read(prompts)
        masked = self.encode_images(blank_hole(images, masks))
        condition = torch.cat([masked, F.pixel_unshuffle(masks, factor_of(self.pipeline.vae))], dim=1)
        return condition, F.adaptive_max_pool2d(masks, cells_of(masked))

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """All pixels of a cell have the cell's mask."""
        pixels = factor_of(self.pipeline.vae) ** 2
        return torch.cat([masked_image_latents, mask.expand(-1, pixels, -1, -1)], dim=1)


class FluxBlend(Blending, Flux):
    """The `ModelFamily` of FluxInpaintPipeline."""

    default_told = 7.0


def open_pipeline(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> FluxFill | FluxBlend:
    """Open a pipeline of FLUX.1; see `open_family`. A text-to-image pipeline inpaints by blending."""
    index, is_fill = read_index(place, CLASSES, PARTS), _reads_mask(place)
    kind = "FluxFillPipeline" if is_fill else "FluxInpaintPipeline"
    pipeline = load_pipeline(kind, config, place, index, NETWORKS, device, parts)
    family = (FluxFill if is_fill else FluxBlend)(
        pipeline, None if config.guidance == "true" else config.guidance_scale
    )
    family.text_length = _read_text_length(place)
    return family


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the VAE's native size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, PARTS)
    _reads_mask(place)
    return read_evenly_shifted(place, num_inference_steps, side=read_native_cells(place) // Flux.patch)


def read_sides(place: Path) -> Sides:
    """Which sides images may have, from the pipeline's configuration alone."""
    return Sides(step_px=Flux.patch * read_factor(place))


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that a pipeline takes, its default first.

    True guidance is a further one of the text-to-image class, with the default told to a distilled network.
    """
    is_told = read_part_config(place, "transformer", "config.json").get("guidance_embeds")
    return ("embedded" if is_told else "none", *(() if _reads_mask(place) else ("true",)))


def _read_text_length(place: Path) -> int:
    """Most tokens of a text that T5's tokenizer reads; configurations that are written down have none."""
    if not (place / "tokenizer_2").is_dir():
        return TEXT_OPTIONS["length"]
    settings = read_part_config(place, "tokenizer_2", "tokenizer_config.json")
    return min(TEXT_OPTIONS["length"], int(settings.get("model_max_length", TEXT_OPTIONS["length"])))


def _reads_mask(place: Path) -> bool:
    """Whether the transformer reads the mask, as Fill's does; raises UserError if it reads anything else."""
    vae = read_part_config(place, "vae", "config.json")
    latents, pixels = int(vae["latent_channels"]), 4 ** (len(vae["block_out_channels"]) - 1)
    layouts = {
        4 * (2 * latents + pixels): "latents, masked image and mask",
        4 * latents: "latents alone",
    }
    return check_channels(place, layouts) != "latents alone"
