"""Z-Image: a text-to-image transformer that inpaints by blending.

Its time runs from 0 (noise) to 1, and it predicts the negative of flow matching's velocity.
"""

from collections.abc import Set
from pathlib import Path

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import read_factor
from rlhf.diffusion.families.blending import Blending
from rlhf.diffusion.families.family import Sides, TextEmbedding, zero_text
from rlhf.diffusion.families.pipeline_folder import Part, check_channels, load_pipeline, read_index, read_part_config
from rlhf.diffusion.families.transformer import (
    NETWORKS,
    PARTS,
    SCHEDULERS,
    TransformerFamily,
    read_evenly_shifted,
    read_native_cells,
)
from rlhf.diffusion.precision import in_precision
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.errors import UserError

CLASSES = {
    "_class_name": ("ZImageInpaintPipeline", "ZImagePipeline"),
    "transformer": ("ZImageTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": SCHEDULERS,
}
LORA_TARGETS: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
"""Modules that get an adapter by default: the attention layers of diffusers' own LoRA training."""
TEXT_OPTIONS = {"length": 512}
"""Most tokens of a text."""


class ZImage(Blending, TransformerFamily):
    """The `ModelFamily` of ZImageInpaintPipeline."""

    lora_targets = LORA_TARGETS
    default_scale = 5.0
    unguided_scale = 0.0

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """The hidden states before the last of Qwen3, for the text as a user's message: as many as it has tokens."""
        (embedding,), _ = self.pipeline.encode_prompt(
            text,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=TEXT_OPTIONS["length"],
        )
        return TextEmbedding(embedding=embedding.float()[None], pooled=None)

    def longest_text(self) -> TextEmbedding:
        """As many tokens as a caption is cut to."""
        return zero_text(TEXT_OPTIONS["length"], self.network.config.cap_feat_dim, None, self.device)

    def predict(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
        precision: str,
    ) -> torch.Tensor:
        """One forward pass; the network reads lists of images and of texts, each of its own length."""
        text = text.expand(len(latents))
        texts = [tokens[counted] for tokens, counted in zip(text.embedding, text.counted(), strict=True)]
        with in_precision(latents.device, precision):
            output = network(
                list(self.inputs(latents, condition)[:, :, None]), (1000 - timestep) / 1000, texts, return_dict=False
            )[0]
        return -torch.stack(list(output))[:, :, 0].float()

    def guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """Counted from the positive prediction: 0 is no guidance."""
        return positive + scale * (positive - negative)


def open_pipeline(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> ZImage:
    """Open a pipeline of Z-Image; see `open_family`. A text-to-image pipeline inpaints by blending."""
    index = read_index(place, CLASSES, PARTS)
    _check_network(place)
    return ZImage(load_pipeline("ZImageInpaintPipeline", config, place, index, NETWORKS, device, parts))


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the VAE's native size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, PARTS)
    _check_network(place)
    return read_evenly_shifted(place, num_inference_steps, side=read_native_cells(place) // ZImage.patch)


def read_sides(place: Path) -> Sides:
    """Which sides images may have, from the pipeline's configuration alone."""
    return Sides(step_px=ZImage.patch * read_factor(place))


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that a pipeline takes, its default first."""
    return ("none", "true")


def _check_network(place: Path) -> None:
    """Raises UserError if the transformer reads anything but latents, time and text."""
    latents = int(read_part_config(place, "vae", "config.json")["latent_channels"])
    check_channels(place, {latents: "latents alone"})
    if read_part_config(place, "transformer", "config.json").get("siglip_feat_dim"):
        raise UserError(
            f"{place}: its transformer reads images (siglip_feat_dim), which is not supported; check model.path"
        )
