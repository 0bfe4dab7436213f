"""Which family a pipeline belongs to, by the class that its folder names."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.pipeline_folder import read_class
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.imports import without_collections

if TYPE_CHECKING:
    from rlhf.diffusion.families.family import ModelFamily

MODULES = {
    "StableDiffusionInpaintPipeline": "stable_diffusion",
    "StableDiffusionXLInpaintPipeline": "stable_diffusion",
    "StableDiffusion3InpaintPipeline": "stable_diffusion_3",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "FluxFillPipeline": "flux",
    "FluxInpaintPipeline": "flux",
    "FluxPipeline": "flux",
}
"""Module of this folder by the pipeline's class in `model_index.json`.

Each module has `open_pipeline`, `read_schedule`, `network_on_meta` and `LORA_TARGETS`.
"""


def _module_of(place: Path) -> Any:
    return import_module(f"rlhf.diffusion.families.{MODULES[read_class(place, tuple(MODULES))]}")


def open_family(
    config: ModelConfig, place: Path, device: torch.device, *, with_safety_checker: bool = False
) -> "ModelFamily":
    """Open the pipeline at a folder, URL or hub name on `device`, frozen.

    The safety checker is left out unless asked for: training judges images by the reward alone. Raises UserError if
    the pipeline is incomplete, damaged, or of a class that is not supported.
    """
    with without_collections():
        family: ModelFamily = _module_of(place).open_pipeline(
            config, place, device, with_safety_checker=with_safety_checker
        )
    return family


def read_schedule(place: Path, num_inference_steps: int) -> Schedule:
    """The steps of a pipeline at its native size, from its configuration alone.

    Raises UserError if the pipeline's class, a part of it or its scheduler is not supported.
    """
    with without_collections():
        schedule: Schedule = _module_of(place).read_schedule(place, num_inference_steps)
    return schedule


def network_on_meta(place: Path) -> Any:
    """The network of a pipeline without memory for its weights; raises UserError if there is none."""
    with without_collections():
        return _module_of(place).network_on_meta(place)


def default_lora_targets(place: Path) -> tuple[str, ...]:
    """Names of the modules that get an adapter where `align.lora_targets` names none."""
    targets: tuple[str, ...] = _module_of(place).LORA_TARGETS
    return targets
