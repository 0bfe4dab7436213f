"""Which family a pipeline belongs to, by the class that its folder names."""

from collections.abc import Set
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.pipeline_folder import Part, read_class
from rlhf.diffusion.steps.step_rule import Schedule

if TYPE_CHECKING:
    from rlhf.diffusion.families.family import ModelFamily

MODULES = {
    "StableDiffusionInpaintPipeline": "stable_diffusion",
    "StableDiffusionXLInpaintPipeline": "stable_diffusion",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "stable_diffusion",
    "StableDiffusion3InpaintPipeline": "stable_diffusion_3",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "FluxFillPipeline": "flux",
    "FluxInpaintPipeline": "flux",
    "FluxPipeline": "flux",
    "Flux2KleinInpaintPipeline": "flux2",
    "Flux2KleinPipeline": "flux2",
    "QwenImageInpaintPipeline": "qwen_image",
    "QwenImagePipeline": "qwen_image",
    "ZImageInpaintPipeline": "z_image",
    "ZImagePipeline": "z_image",
}
"""Module of this folder by the pipeline's class in `model_index.json`.

Each module has `open_pipeline`, `read_schedule`, `network_on_meta` and `LORA_TARGETS`.
"""
UNGUARDED = frozenset(Part) - {Part.SAFETY_CHECKER}
"""All parts but the safety checker: training judges images by the reward alone."""


def _module_of(place: Path) -> Any:
    return import_module(f"rlhf.diffusion.families.{MODULES[read_class(place, tuple(MODULES))]}")


def open_family(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part] = UNGUARDED) -> "ModelFamily":
    """Open the `parts` that a process needs of the pipeline at a folder, URL or hub name, frozen.

    Each module's `open_pipeline` takes the same arguments and hands `parts` to `load_pipeline`, where the rest is left
    without memory. Raises UserError if the pipeline is incomplete, damaged, or of a class that is not supported.
    """
    family: ModelFamily = _module_of(place).open_pipeline(config, place, device, parts)
    return family


def read_schedule(place: Path, num_inference_steps: int) -> Schedule:
    """The steps of a pipeline at its native size, from its configuration alone.

    Raises UserError if the pipeline's class, a part of it or its scheduler is not supported.
    """
    schedule: Schedule = _module_of(place).read_schedule(place, num_inference_steps)
    return schedule


def network_on_meta(place: Path) -> Any:
    """The network of a pipeline without memory for its weights; raises UserError if there is none."""
    return _module_of(place).network_on_meta(place)


def default_lora_targets(place: Path) -> tuple[str, ...]:
    """Names of the modules that get an adapter where `align.lora_targets` names none."""
    targets: tuple[str, ...] = _module_of(place).LORA_TARGETS
    return targets
