"""Stable Diffusion 3: a transformer of 33 input channels that reads mask and masked image, or of 16 by blending."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import read_factor
from rlhf.diffusion.families.blending import Blending
from rlhf.diffusion.families.family import Sides, TextEmbedding, zero_text
from rlhf.diffusion.families.masked_image import MaskedImage
from rlhf.diffusion.families.pipeline_folder import Part, check_channels, load_pipeline, read_index, read_part_config
from rlhf.diffusion.families.transformer import (
    NETWORKS,
    PARTS,
    SCHEDULERS,
    TransformerFamily,
    read_flow_scheduler,
)
from rlhf.diffusion.precision import in_precision
from rlhf.diffusion.steps.flow_matching import FlowSchedule, make_flow_schedule

CLASSES = {
    "_class_name": ("StableDiffusion3InpaintPipeline", "StableDiffusion3Pipeline"),
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": SCHEDULERS,
}
LORA_TARGETS: tuple[str, ...] = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
"""Modules that get an adapter by default: the attention layers of diffusers' own LoRA training."""
TEXT_OPTIONS = {"length": 256}
"""Most tokens of T5."""


class StableDiffusion3(TransformerFamily):
    """What both layouts have in common. The networks predict the velocity of flow matching."""

    lora_targets = LORA_TARGETS
    default_scale = 7.0

    @property
    def patch(self) -> int:  # type: ignore[override]
        """Latent cells on the side of a token."""
        return int(self.network.config.patch_size)

    @property
    def native_px(self) -> int:
        """Side of the square images that the transformer was made for."""
        return int(self.network.config.sample_size) * self.pipeline.vae_scale_factor

    @property
    def sides(self) -> Sides:
        """Whole tokens, and no more in a row than the transformer has places for."""
        return _sides_of(self.network.config, self.factor)

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """The tokens of two CLIP encoders and T5 one after another, and CLIP's pooled embeddings side by side."""
        embedding, _, pooled, _ = self.pipeline.encode_prompt(
            text,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=TEXT_OPTIONS["length"],
        )
        return TextEmbedding(embedding=embedding.float(), pooled=pooled.float())

    def longest_text(self) -> TextEmbedding:
        """CLIP's 77 tokens and T5's 256."""
        config = self.network.config
        return zero_text(77 + 256, config.joint_attention_dim, config.pooled_projection_dim, self.device)

    def levels(self, num_inference_steps: int, cells: tuple[int, int]) -> FlowSchedule:
        """The levels that the pipeline's own scheduler spaces and shifts."""
        return make_flow_schedule(self.pipeline.scheduler, num_inference_steps, tokens=self.count_tokens(cells))

    def predict(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
        precision: str,
    ) -> torch.Tensor:
        """One forward pass: latents [B, C, h, w] and the condition side by side, or the latents alone."""
        text = text.expand(len(latents))
        with in_precision(latents.device, precision):
            return network(
                hidden_states=self.inputs(latents, condition),
                timestep=timestep,
                encoder_hidden_states=text.embedding,
                pooled_projections=text.pooled,
                return_dict=False,
            )[0].float()


class StableDiffusion3Fill(MaskedImage, StableDiffusion3):
    """The `ModelFamily` of transformers that read 2 C + 1 channels."""


class StableDiffusion3Blend(Blending, StableDiffusion3):
    """The `ModelFamily` of transformers that read the C channels of the latents."""


def open_pipeline(
    config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]
) -> StableDiffusion3Fill | StableDiffusion3Blend:
    """Open a pipeline of Stable Diffusion 3; see `open_family`. A text-to-image pipeline inpaints by blending."""
    index, is_fill = read_index(place, CLASSES, PARTS), _reads_mask(place)
    kind = "StableDiffusion3InpaintPipeline"
    pipeline = load_pipeline(kind, config, place, index, NETWORKS, device, parts)
    return (StableDiffusion3Fill if is_fill else StableDiffusion3Blend)(pipeline)


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the transformer's native size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, PARTS)
    _reads_mask(place)
    scheduler = read_flow_scheduler(place)
    network = read_part_config(place, "transformer", "config.json")
    tokens = (int(network["sample_size"]) // int(network["patch_size"])) ** 2
    return make_flow_schedule(scheduler, num_inference_steps, tokens=tokens)


def read_sides(place: Path) -> Sides:
    """Which sides images may have, from the pipeline's configuration alone."""
    return _sides_of(read_part_config(place, "transformer", "config.json"), read_factor(place))


def _sides_of(network: Mapping[str, Any], factor: int) -> Sides:
    """Whole tokens, for which the transformer's table of places has as many rows and columns."""
    step_px = int(network["patch_size"]) * factor
    return Sides(step_px=step_px, longest_px=int(network["pos_embed_max_size"]) * step_px)


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that a pipeline takes, its default first."""
    return ("none", "true")


def _reads_mask(place: Path) -> bool:
    """Whether the transformer reads mask and masked image; raises UserError if it reads anything else."""
    latents = int(read_part_config(place, "vae", "config.json")["latent_channels"])
    layouts = {2 * latents + 1: "latents, mask and masked image", latents: "latents alone"}
    return check_channels(place, layouts) != "latents alone"
