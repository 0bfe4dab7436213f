"""Which family a pipeline belongs to, by the class that its folder names."""

from collections.abc import Mapping, Set
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf.config.run_config import BUILTIN, ModelConfig
from rlhf.data.buckets import Size
from rlhf.diffusion.families.family import Sides
from rlhf.diffusion.families.pipeline_folder import Part, read_class, read_part_config
from rlhf.diffusion.families.transformer import TransformerFamily
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.errors import UserError
from rlhf.imports import without_collections
from rlhf.storage.url_path import as_path

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
    "FluxKontextInpaintPipeline": "flux_kontext",
    "FluxKontextPipeline": "flux_kontext",
    "Flux2KleinInpaintPipeline": "flux2",
    "Flux2KleinPipeline": "flux2",
    "QwenImageInpaintPipeline": "qwen_image",
    "QwenImagePipeline": "qwen_image",
    "QwenImageEditInpaintPipeline": "qwen_edit",
    "QwenImageEditPipeline": "qwen_edit",
    "ZImageInpaintPipeline": "z_image",
    "ZImagePipeline": "z_image",
}
"""Module of this folder by the pipeline's class in `model_index.json`.

Each module has `CLASSES`, `open_pipeline`, `read_schedule`, `read_sides`, `guidance_kinds`, `LORA_TARGETS`, and
`TEXT_OPTIONS`: how it has texts embedded, on which cached embeddings depend; `picture` says that the text encoder looks
at the image.
"""
UNGUARDED = frozenset(Part) - {Part.SAFETY_CHECKER}
"""All parts but the safety checker: training judges images by the reward alone."""


def resolve_model(path: str) -> str:
    """The folder of a built-in model for its name; any other path unchanged."""
    return str(Path(__file__).parents[1] / "builtin" / path) if path in BUILTIN else path


def module_of(place: Path) -> Any:
    """The module of this folder for the pipeline at `place`; see `MODULES`."""
    return import_module(f"rlhf.diffusion.families.{MODULES[read_class(place, tuple(MODULES))]}")


def open_family(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part] = UNGUARDED) -> "ModelFamily":
    """Open the `parts` that a process needs of the pipeline at a folder, URL or hub name, frozen.

    Each module's `open_pipeline` takes the same arguments and hands `parts` to `load_pipeline`, where the rest is left
    without memory. Raises UserError if the pipeline is incomplete, damaged, or of a class that is not supported.
    """
    with without_collections():
        family: ModelFamily = module_of(place).open_pipeline(config, place, device, parts)
    if isinstance(family, TransformerFamily):
        family.rule = config.step_rule or "ddim"
    return family


def read_schedule(config: ModelConfig, place: Path, num_inference_steps: int) -> Schedule:
    """The steps of a pipeline at its native size, from its configuration alone.

    Raises UserError if the pipeline's class, a part of it or its scheduler is not supported, or does not take the
    configured guidance or step rule.
    """
    with without_collections():
        check_guidance(config, place)
        schedule: Schedule = module_of(place).read_schedule(place, num_inference_steps)
    if isinstance(schedule, FlowSchedule):
        return replace(schedule, rule=config.step_rule or "ddim")
    if config.step_rule not in (None, "ddim"):
        raise UserError(f"model.step_rule: {config.step_rule} is for flow matching, which {place} is not; use ddim")
    return schedule


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that the pipeline at `place` takes, its default first."""
    kinds: tuple[str, ...] = module_of(place).guidance_kinds(place)
    return kinds


def read_sides(place: Path) -> Sides:
    """Which sides images of a pipeline may have, from its configuration alone."""
    sides: Sides = module_of(place).read_sides(place)
    return sides


def reads_picture(place: Path) -> bool:
    """Whether the text encoder of the pipeline at `place` looks at the image; see `ModelFamily.reads_picture`."""
    return bool(module_of(place).TEXT_OPTIONS.get("picture"))


def check_guidance(config: ModelConfig, place: Path) -> None:
    """Raises UserError if the pipeline at `place` does not take the configured guidance."""
    kinds = guidance_kinds(place)
    chosen = config.guidance or kinds[0]
    if chosen not in kinds:
        raise UserError(f"model.guidance: {chosen} is not for {place}, which takes {' or '.join(kinds)}; choose one")
    if config.guidance_scale is not None and chosen == "none":
        raise UserError("model.guidance_scale: nothing reads it without guidance; set model.guidance, or remove it")
    if config.negative_caption and chosen != "true":
        raise UserError("model.negative_caption: only true guidance reads it; set model.guidance true, or remove it")


def check_guided_captions(config: ModelConfig, captions: Mapping[str, str]) -> None:
    """Raises UserError if guidance is true and one of the `captions`, by prompt id, is empty."""
    for prompt_id, caption in captions.items() if config.guidance == "true" else ():
        if not caption.strip():
            raise UserError(
                f"model.guidance: true guidance leads towards captions, but prompt {prompt_id} has none; "
                "cut the prompts with --captions, or choose another guidance"
            )


def check_sizes(config: ModelConfig, sizes: Mapping[str, Size]) -> None:
    """Raises UserError if the model cannot paint one of the `sizes`, by prompt id; reads its configuration alone."""
    sides = read_sides(as_path(resolve_model(config.path)))
    for prompt_id, (height, width) in sizes.items():
        if not sides.take(height, width):
            raise UserError(
                f"prompt {prompt_id}: is {width}x{height} px, and {config.path} paints {sides}; cut the prompts again "
                "with such a prompts.size_px, and for buckets prompts.bucket_step_px"
            )


def network_part(place: Path) -> str:
    """The name of the network's folder in the pipeline at `place`."""
    return next(name for name in ("transformer", "unet") if name in module_of(place).CLASSES)


def network_on_meta(place: Path) -> Any:
    """The network of a pipeline without memory for its weights; raises UserError if there is none."""
    with without_collections():
        import diffusers

        part = network_part(place)
        with torch.device("meta"):
            return getattr(diffusers, module_of(place).CLASSES[part][0]).from_config(
                read_part_config(place, part, "config.json")
            )


def default_lora_targets(place: Path) -> tuple[str, ...]:
    """Names of the modules that get an adapter where `align.lora_targets` names none."""
    targets: tuple[str, ...] = module_of(place).LORA_TARGETS
    return targets
