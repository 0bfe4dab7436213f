"""FLUX.1 Kontext: an editing transformer that reads the known image as further tokens, and inpaints by blending.

Images are painted at the prompts' own size; diffusers' class scales all to one of its sizes of a megapixel.
"""

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families import flux
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.families.flux import LORA_TARGETS, TEXT_OPTIONS, FluxBlend, guidance_kinds, read_sides
from rlhf.diffusion.families.pipeline_folder import Part, check_channels, load_pipeline, read_index, read_part_config
from rlhf.diffusion.families.transformer import NETWORKS, PARTS, read_evenly_shifted, read_native_cells
from rlhf.diffusion.steps.flow_matching import FlowSchedule

__all__ = [
    "CLASSES",
    "LORA_TARGETS",
    "TEXT_OPTIONS",
    "guidance_kinds",
    "open_pipeline",
    "read_schedule",
    "read_sides",
]

CLASSES = flux.CLASSES | {"_class_name": ("FluxKontextInpaintPipeline", "FluxKontextPipeline")}


class FluxKontext(FluxBlend):
    """The `ModelFamily` of FluxKontextInpaintPipeline."""

    default_told = 3.5
    reads_known = True

    def arguments(self, latents: torch.Tensor, text: TextEmbedding) -> dict[str, Any]:
        """As those of FLUX.1; the known image lies in the same places of a second frame."""
        told = super().arguments(latents, text)
        known = told["img_ids"].clone()
        known[:, 0] = 1
        return told | {"img_ids": torch.cat([told["img_ids"], known])}


def open_pipeline(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> FluxKontext:
    """Open a pipeline of FLUX.1 Kontext; see `open_family`."""
    index = read_index(place, CLASSES, PARTS)
    _check_network(place)
    pipeline = load_pipeline("FluxKontextInpaintPipeline", config, place, index, NETWORKS, device, parts)
    return FluxKontext(pipeline, None if config.guidance == "true" else config.guidance_scale)


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the VAE's native size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, PARTS)
    _check_network(place)
    return read_evenly_shifted(place, num_inference_steps, side=read_native_cells(place) // FluxKontext.patch)


def _check_network(place: Path) -> None:
    """Raises UserError if the transformer reads anything but packed latents, time and text."""
    check_channels(place, {4 * int(read_part_config(place, "vae", "config.json")["latent_channels"]): "latents alone"})
