"""Opening a diffusers pipeline for inpainting: Stable Diffusion or SDXL, and what its UNet is told as text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.errors import UserError

if TYPE_CHECKING:
    from diffusers import StableDiffusionInpaintPipeline


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """What a UNet is told as text: one for all images, or one for each. The method itself uses the empty text alone."""

    embedding: torch.Tensor
    """float32 [1 or B, length, width]; SDXL's two text encoders side by side."""
    pooled: torch.Tensor | None
    """float32 [1 or B, width] of SDXL's second text encoder; None for Stable Diffusion."""
    vae_scale_factor: int
    """Pixels per latent cell and side."""

    def unet_inputs(self, latents: torch.Tensor) -> dict[str, Any]:
        """What the UNet takes beside latents [B, 4, h, w] and timestep, for each of the B."""
        count, _, height, width = latents.shape
        inputs: dict[str, Any] = {"encoder_hidden_states": self.embedding.expand(count, -1, -1)}
        if self.pooled is not None:
            size = [height * self.vae_scale_factor, width * self.vae_scale_factor]
            # SDXL's size conditioning (arXiv:2307.01952, section 2.2): original size, crop's corner, target size.
            time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=latents.device)
            inputs["added_cond_kwargs"] = {
                "text_embeds": self.pooled.expand(count, -1),
                "time_ids": time_ids.expand(count, -1),
            }
        return inputs


def open_pipeline(
    config: ModelConfig, name: str, device: torch.device, *, with_safety_checker: bool = False
) -> "StableDiffusionInpaintPipeline":
    """A frozen pipeline on `device`, from the folder or hub `name`; SDXL's class is its sibling in all that we use.

    The safety checker is left out unless it is asked for: training judges images by the reward alone.
    Raises UserError where the pipeline is incomplete or of another kind.
    """
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        if "XL" in StableDiffusionInpaintPipeline.load_config(name)["_class_name"]:
            pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(name)
        else:
            left_out = {} if with_safety_checker else {"safety_checker": None, "requires_safety_checker": False}
            pipeline = StableDiffusionInpaintPipeline.from_pretrained(name, **left_out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{config.path}: not a complete pipeline of Stable Diffusion or SDXL inpainting ({reason}); "
            "check model.path"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.unet.config.in_channels != 9:
        raise UserError(
            f"{config.path}: its UNet takes {pipeline.unet.config.in_channels} channels; inpainting needs 9"
        )
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipeline.unet.to(memory_format=torch.channels_last)
    _set_attention(pipeline, config.attention, device)
    return pipeline


def _set_attention(pipeline: "StableDiffusionInpaintPipeline", choice: str, device: torch.device) -> None:
    if choice != "xformers":
        return
    if device.type != "cuda":
        raise UserError("model.attention: xformers needs a CUDA GPU; use auto")
    try:
        pipeline.unet.enable_xformers_memory_efficient_attention()
    except ModuleNotFoundError as error:
        raise UserError("model.attention: xformers is not installed; pip install 'prefpaint-ray[gpu]'") from error


@torch.no_grad()
def embed_text(pipeline: "StableDiffusionInpaintPipeline", text: str = "") -> TextEmbedding:
    """A text as the pipeline itself embeds a prompt; what is longer than its encoder reads is cut off."""
    embedding, _, *pooled = pipeline.encode_prompt(
        text, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return TextEmbedding(
        embedding=embedding.float(),
        pooled=pooled[0].float() if pooled else None,
        vae_scale_factor=pipeline.vae_scale_factor,
    )
