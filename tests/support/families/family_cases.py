"""Every family with its small pipeline, and how diffusers' own class is called to paint the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from small_families import (
    LinearMultistep,
    small_fill_pipeline,
    small_flux_inpaint_pipeline,
    small_kontext_pipeline,
    small_multistep_fill_pipeline,
    small_sd3_pipeline,
    small_sd_pipeline,
    small_xl_pipeline,
)
from small_qwen import (
    small_klein_pipeline,
    small_qwen_edit_pipeline,
    small_qwen_image_pipeline,
    small_z_image_pipeline,
)

from rlhf.diffusion.builtin.base_denoisers import TEXT_TOKENS
from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.flux import FluxBlend, FluxFill
from rlhf.diffusion.families.flux2 import Flux2Klein
from rlhf.diffusion.families.flux_kontext import FluxKontext
from rlhf.diffusion.families.qwen_edit import QwenImageEdit
from rlhf.diffusion.families.qwen_image import QwenImage
from rlhf.diffusion.families.qwen_processor import open_processor
from rlhf.diffusion.families.stable_diffusion import StableDiffusion, StableDiffusionBlend
from rlhf.diffusion.families.stable_diffusion_3 import StableDiffusion3Blend, StableDiffusion3Fill
from rlhf.diffusion.families.z_image import ZImage

SCALE, NEGATIVE = 3.0, "a dog"
UPDATES = 8


@dataclass(frozen=True, kw_only=True)
class FamilyCase:
    """A family on its small pipeline."""

    build: Callable[[], Any]
    """The pipeline of the class that inpaints."""
    wrap: Callable[[Any], ModelFamily]
    """The family around it."""
    call: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the class beside prompt, image, mask, size, steps and noise."""
    guided: Mapping[str, object] | None = None
    """Arguments with which the class guides by a second pass, on the scale `SCALE` and from `NEGATIVE`."""
    learning_rate: float = 1e-2
    """Of the small alignments."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Exceptions from it, by algorithm: where it is so large that the small network loses what it has learned."""
    updates: Mapping[str, int] = field(default_factory=dict)
    """Numbers of updates of the small alignments other than UPDATES, by algorithm."""
    components: Callable[[Path], Mapping[str, object]] = lambda folder: {}
    """Parts of a folder that plain diffusers cannot open itself with the packages that the tests have."""
    scheduler: Callable[[], Any] | None = None
    """Scheduler with which the class takes the steps that the family takes, if it is not the pipeline's own."""
    is_decoded: bool = True
    """Whether the class decodes rightly; else latents are compared."""


def _diffusion(build: Callable[..., Any], kind: type[StableDiffusion], in_channels: int) -> FamilyCase:
    return FamilyCase(
        build=lambda: build(in_channels=in_channels),
        wrap=lambda pipeline: kind(pipeline, pipeline.scheduler),
        call={"guidance_scale": 1.0},
        guided={"guidance_scale": SCALE, "negative_prompt": NEGATIVE},
    )


CASES = {
    "StableDiffusion": _diffusion(small_sd_pipeline, StableDiffusion, 9),
    "StableDiffusionBlend": _diffusion(small_sd_pipeline, StableDiffusionBlend, 4),
    "StableDiffusionXL": _diffusion(small_xl_pipeline, StableDiffusion, 9),
    "StableDiffusionXLBlend": _diffusion(small_xl_pipeline, StableDiffusionBlend, 4),
    "FluxFill": FamilyCase(
        build=small_fill_pipeline,
        wrap=lambda pipeline: FluxFill(pipeline, told=7.5),
        call={"guidance_scale": 7.5, "max_sequence_length": TEXT_TOKENS},
    ),
    "FluxFill of third order": FamilyCase(
        build=small_multistep_fill_pipeline,
        wrap=lambda pipeline: FluxFill(pipeline, told=7.5),
        call={"guidance_scale": 7.5, "max_sequence_length": TEXT_TOKENS},
        scheduler=LinearMultistep,
    ),
    "FluxBlend": FamilyCase(
        build=small_flux_inpaint_pipeline,
        wrap=lambda pipeline: FluxBlend(pipeline, told=7.5),
        guided={"true_cfg_scale": SCALE, "negative_prompt": NEGATIVE},
        call={"guidance_scale": 7.5, "max_sequence_length": TEXT_TOKENS},
    ),
    "FluxKontext": FamilyCase(
        build=small_kontext_pipeline,
        wrap=lambda pipeline: FluxKontext(pipeline, told=7.5),
        guided={"true_cfg_scale": SCALE, "negative_prompt": NEGATIVE},
        call={"guidance_scale": 7.5, "max_sequence_length": TEXT_TOKENS, "_auto_resize": False},
    ),
    "StableDiffusion3Fill": FamilyCase(
        build=lambda: small_sd3_pipeline(in_channels=33),
        wrap=StableDiffusion3Fill,
        call={"guidance_scale": 1.0},
        guided={"guidance_scale": SCALE, "negative_prompt": NEGATIVE},
        is_decoded=False,
    ),
    "StableDiffusion3Blend": FamilyCase(
        build=lambda: small_sd3_pipeline(in_channels=16),
        wrap=StableDiffusion3Blend,
        call={"guidance_scale": 1.0},
        learning_rates={"prefpaint": 3e-3},
        guided={"guidance_scale": SCALE, "negative_prompt": NEGATIVE},
        is_decoded=False,
    ),
    "Flux2Klein": FamilyCase(
        build=small_klein_pipeline,
        wrap=Flux2Klein,
        call={"guidance_scale": 1.0},
        learning_rates={"prefpaint": 3e-3},
        guided={"guidance_scale": SCALE},
    ),
    "QwenImage": FamilyCase(
        build=small_qwen_image_pipeline,
        wrap=QwenImage,
        learning_rates={"prefpaint": 3e-3},
        guided={"true_cfg_scale": SCALE, "negative_prompt": NEGATIVE},
    ),
    "QwenImageEdit": FamilyCase(
        build=small_qwen_edit_pipeline,
        wrap=QwenImageEdit,
        learning_rates={"prefpaint": 3e-3},
        call={"true_cfg_scale": 1.0},
        guided={"true_cfg_scale": SCALE, "negative_prompt": NEGATIVE},
        components=lambda folder: {"processor": open_processor(folder / "processor")},
    ),
    "ZImage": FamilyCase(
        build=small_z_image_pipeline,
        wrap=ZImage,
        call={"guidance_scale": 0.0},
        learning_rate=3e-3,
        learning_rates={"prefpaint": 1e-3},
        updates={"awm": 24, "prefpaint": 32},
        guided={"guidance_scale": SCALE, "negative_prompt": NEGATIVE},
    ),
}
