"""FLUX.2 klein: a transformer that reads the known image as further tokens, and inpaints by blending.

Latents are those that it reads: 128 channels at cells of 16 px, each two by two cells of the VAE, normalised by the
statistics of the VAE's batch norm. The network predicts the velocity of flow matching.
"""

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import factor_of, in_parts, read_factor
from rlhf.diffusion.families.blending import Blending
from rlhf.diffusion.families.family import Sides, TextEmbedding, zero_text
from rlhf.diffusion.families.pipeline_folder import (
    INDEX,
    Part,
    check_channels,
    load_pipeline,
    read_index,
    read_part_config,
)
from rlhf.diffusion.families.transformer import (
    NETWORKS,
    PARTS,
    SCHEDULERS,
    TokenFamily,
    evenly_shifted,
    read_flow_scheduler,
    read_native_cells,
)
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.errors import UserError

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler


CLASSES = {
    "_class_name": ("Flux2KleinInpaintPipeline", "Flux2KleinPipeline"),
    "transformer": ("Flux2Transformer2DModel",),
    "vae": ("AutoencoderKLFlux2",),
    "scheduler": SCHEDULERS,
}
LORA_TARGETS: tuple[str, ...] = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "to_qkv_mlp_proj",
)
"""Modules that get an adapter by default: attention of both kinds of blocks."""
TEXT_LENGTH, TEXT_LAYERS = 512, (9, 18, 27)
"""Tokens of a text, and the hidden layers of Qwen3 that are read."""
TEXT_OPTIONS = {"length": TEXT_LENGTH, "layers": TEXT_LAYERS}
FOLD = 2
"""The VAE's cells on the side of a cell here."""


class Flux2Klein(Blending, TokenFamily):
    """The `ModelFamily` of Flux2KleinInpaintPipeline. A mask is fractional: resized to cells linearly."""

    lora_targets = LORA_TARGETS
    default_scale = 8.0
    patch = 1
    reads_known = True
    resizing = "bilinear"

    @property
    def factor(self) -> int:
        """Pixels on the side of a cell."""
        return FOLD * factor_of(self.pipeline.vae)

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """Hidden layers side by side, for the text as a user's message filled up to the full length."""
        embedding, _ = self.pipeline.encode_prompt(
            text, device=self.device, max_sequence_length=TEXT_LENGTH, text_encoder_out_layers=TEXT_LAYERS
        )
        return TextEmbedding(embedding=embedding.float(), pooled=None)

    def longest_text(self) -> TextEmbedding:
        """Every text has this length."""
        return zero_text(TEXT_LENGTH, self.network.config.joint_attention_dim, None, self.device)

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior's mode, folded two by two and normalised."""
        vae = self.pipeline.vae
        mean, std = self._statistics()
        modes = in_parts(lambda part: vae.encode(part).latent_dist.mode(), images.to(vae.device), 1)
        return (F.pixel_unshuffle(modes, FOLD) - mean) / std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        mean, std = self._statistics()
        return in_parts(
            lambda part: self.pipeline.vae.decode(F.pixel_shuffle(part, FOLD)).sample, latents * std + mean, self.factor
        )

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of each channel, [1, C, 1, 1]."""
        norm = self.pipeline.vae.bn
        variance = norm.running_var + self.pipeline.vae.config.batch_norm_eps
        return norm.running_mean.view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ModelFamily`."""
        return FOLD**2 * self.pipeline.vae.config.latent_channels, height, width

    def levels(self, num_inference_steps: int, cells: tuple[int, int]) -> FlowSchedule:
        """The levels of the pipeline's own scheduler, with the class's own dynamic shift."""
        return _schedule(self.pipeline.scheduler, num_inference_steps, self.count_tokens(cells))

    def arguments(self, latents: torch.Tensor, text: TextEmbedding) -> dict[str, Any]:
        """Positions of texts, latents and known image, which lies in a frame of its own; klein is told no guidance."""
        positions = (
            self.pipeline._prepare_latent_ids(latents),
            self.pipeline._prepare_image_ids([latents], len(latents)),
        )
        return {
            "guidance": None,
            "txt_ids": self.pipeline._prepare_text_ids(text.embedding).to(latents.device),
            "img_ids": torch.cat(positions, dim=1).to(latents.device),
        }


def open_pipeline(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> Flux2Klein:
    """Open a pipeline of FLUX.2 klein; see `open_family`. A text-to-image pipeline inpaints by blending."""
    index = read_index(place, CLASSES, PARTS)
    _check_network(place)
    return Flux2Klein(load_pipeline("Flux2KleinInpaintPipeline", config, place, index, NETWORKS, device, parts))


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the VAE's native size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, PARTS)
    _check_network(place)
    return _schedule(read_flow_scheduler(place), num_inference_steps, (read_native_cells(place) // FOLD) ** 2)


def read_sides(place: Path) -> Sides:
    """Which sides images may have, from the pipeline's configuration alone."""
    return Sides(step_px=Flux2Klein.patch * FOLD * read_factor(place))


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that a pipeline takes, its default first."""
    return ("none",) if read_part_config(place, INDEX).get("is_distilled") else ("none", "true")


def _schedule(scheduler: "FlowMatchEulerDiscreteScheduler", num_inference_steps: int, tokens: int) -> FlowSchedule:
    from diffusers.pipelines.flux2.pipeline_flux2_klein_inpaint import compute_empirical_mu

    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=num_inference_steps)
    return evenly_shifted(scheduler, num_inference_steps, tokens=tokens, mu=mu)


def _check_network(place: Path) -> None:
    """Raises UserError if the transformer reads anything but folded latents, time and text."""
    latents = int(read_part_config(place, "vae", "config.json")["latent_channels"])
    check_channels(place, {FOLD**2 * latents: "latents alone"})
    if read_part_config(place, "transformer", "config.json").get("guidance_embeds", True):
        raise UserError(f"{place}: its transformer is told a guidance scale, which klein is not; check model.path")
