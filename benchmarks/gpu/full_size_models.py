"""Builds policies of published architectures with random weights, without a download.

The architectures are runwayml/stable-diffusion-inpainting, diffusers/stable-diffusion-xl-1.0-inpainting-0.1, and a tiny
one of each kind. Policies have no text encoders: they hold the embedding of one text, which is random here. Folders
that are written for the commands have one, and a tokenizer without merges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from rlhf.diffusion.builtin.text_parts import build_tokenizer
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.families.pipeline_folder import read_part_config
from rlhf.diffusion.families.stable_diffusion import StableDiffusion
from rlhf.diffusion.families.written_down import WRITTEN
from rlhf.diffusion.policy import Policy


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """Configurations from which diffusers builds the parts of an inpainting pipeline."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    pooled_width: int | None = None
    """Width of SDXL's second text embedding; None for Stable Diffusion."""


WORDS = 77
"""Length of CLIP's texts in tokens."""


def _read(model: str, part: str) -> dict[str, Any]:
    return read_part_config(WRITTEN / model, part, "scheduler_config.json" if part == "scheduler" else "config.json")


SCHEDULE = _read("stable-diffusion-v1-5", "scheduler")
SD = Architecture(unet=_read("stable-diffusion-v1-5", "unet"), vae=_read("stable-diffusion-v1-5", "vae"))
XL = Architecture(unet=_read("sdxl", "unet"), vae=_read("sdxl", "vae"), pooled_width=1280)
TINY_VAE = {"block_out_channels": (16,) * 4, "layers_per_block": 1, "norm_num_groups": 8}
TINY_UNET = {"layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32, "sample_size": 8}
TINY_SD = replace(SD, unet={**SD.unet, **TINY_UNET, "block_out_channels": (32, 32, 64, 64)}, vae={**SD.vae, **TINY_VAE})
TINY_XL = Architecture(
    unet={
        **XL.unet,
        **TINY_UNET,
        "block_out_channels": (32, 32, 64),
        "attention_head_dim": (2, 2, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
    vae={**XL.vae, **TINY_VAE},
    pooled_width=32,
)
CLIP_TEXT = _read("stable-diffusion-v1-5", "text_encoder")
"""Text encoder of CLIP ViT-L/14, which Stable Diffusion reads."""
CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
"""Vision tower of CLIP ViT-L/14."""
TINY_TEXT = {**CLIP_TEXT, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def save_pipeline(architecture: Architecture, text: Mapping[str, int], folder: Path) -> None:
    """Writes a StableDiffusionInpaintPipeline with random weights; `text` configures its encoder."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(text["max_position_embeddings"])
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoder = CLIPTextConfig(**text, bos_token_id=start, eos_token_id=end, pad_token_id=end)
    StableDiffusionInpaintPipeline(
        vae=AutoencoderKL.from_config(dict(architecture.vae)),
        text_encoder=CLIPTextModel(encoder),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_config(dict(architecture.unet)),
        scheduler=DDIMScheduler.from_config(SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_vision_tower(sizes: Mapping[str, int]) -> CLIPVisionModel:
    """Builds CLIP's vision model with random weights, ten times as large as usual.

    What usual ones say of pictures hardly differs, and a reward refuses such features.
    """
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**sizes, initializer_factor=10.0))


def build_unet(architecture: Architecture, device: torch.device) -> UNet2DConditionModel:
    """Builds a frozen UNet with random weights on `device`; on `meta` it takes no memory."""
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(dict(architecture.unet)).requires_grad_(False).eval()
    return unet.to(memory_format=torch.channels_last)


def random_text(architecture: Architecture, device: torch.device) -> TextEmbedding:
    """Returns a random embedding of the right shapes."""
    pooled = architecture.pooled_width
    return TextEmbedding(
        embedding=torch.randn(1, WORDS, architecture.unet["cross_attention_dim"], device=device),
        pooled=None if pooled is None else torch.randn(1, pooled, device=device),
    )


def build_policy(architecture: Architecture, device: torch.device, precision: str) -> Policy:
    """Builds a policy like `load_policy`: frozen float32 weights; in bf16 products are in bfloat16."""
    torch.manual_seed(0)
    text, unet = random_text(architecture, device), build_unet(architecture, device)
    with torch.device(device):
        vae = AutoencoderKL.from_config(dict(architecture.vae)).requires_grad_(False).eval()
    factor = 2 ** (len(architecture.vae["block_out_channels"]) - 1)
    pipeline = SimpleNamespace(unet=unet, vae=vae, text_encoder=None, vae_scale_factor=factor)
    family = StableDiffusion(pipeline, DDIMScheduler.from_config(SCHEDULE))
    return Policy(family=family, text=text, device=device, precision=precision, name="random weights")
