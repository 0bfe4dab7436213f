"""Qwen-Image-Edit: its text encoder looks at the picture, and its transformer reads it as further tokens.

So a text has an embedding for each picture: what is known of the image, with the nearest known colours in the hole.
Images are painted at the prompts' own size; diffusers' class scales all to a megapixel, and does the same at that size.
"""

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families import qwen_image
from rlhf.diffusion.families.family import TextEmbedding, zero_text
from rlhf.diffusion.families.pipeline_folder import Part, fetch, load_pipeline, read_index
from rlhf.diffusion.families.qwen_image import LORA_TARGETS, QwenImage, guidance_kinds, read_sides
from rlhf.diffusion.families.transformer import NETWORKS, PARTS
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.storage.url_path import local_copy

__all__ = [
    "CLASSES",
    "LORA_TARGETS",
    "TEXT_OPTIONS",
    "guidance_kinds",
    "open_pipeline",
    "read_schedule",
    "read_sides",
]

CLASSES = qwen_image.CLASSES | {"_class_name": ("QwenImageEditInpaintPipeline", "QwenImageEditPipeline")}
TEXT_OPTIONS = {"picture": True}
"""The text encoder looks at the picture; a text is not cut."""
GREY = torch.full((3, 56, 56), 127, dtype=torch.uint8)
"""The picture of a text without one: the probe's, which compares two processes."""


class QwenImageEdit(QwenImage):
    """The `ModelFamily` of QwenImageEditInpaintPipeline."""

    reads_picture = True
    reads_known = True

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """The last hidden states of Qwen2.5-VL for picture and text in the class's own template, without its head."""
        shown = Image.fromarray((GREY if picture is None else picture).permute(1, 2, 0).numpy())
        embedding, mask = self.pipeline.encode_prompt(text, image=shown, device=self.device)
        return TextEmbedding(embedding=embedding.float(), pooled=None, mask=None if mask is None else mask.bool())

    def longest_text(self) -> TextEmbedding:
        """The tokens of a picture of a megapixel, cells of 28 px, and as many as those of Qwen-Image's captions."""
        length = 37**2 + qwen_image.TEXT_OPTIONS["length"]
        return zero_text(length, self.network.config.joint_attention_dim, None, self.device)

    def arguments(self, latents: torch.Tensor, text: TextEmbedding) -> dict[str, Any]:
        """As those of Qwen-Image; the known image is a second frame of the same size."""
        told = super().arguments(latents, text)
        return told | {"img_shapes": [[frame, frame] for (frame,) in told["img_shapes"]]}


def open_pipeline(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> QwenImageEdit:
    """Open a pipeline of Qwen-Image-Edit; see `open_family`."""
    index = read_index(place, CLASSES, (*PARTS, "processor"))
    qwen_image.check_network(place)
    with local_copy(place) as local:
        folder, processor = fetch(local, config.variant) if parts else local, None
        if Part.TEXT in parts:
            from rlhf.diffusion.families.qwen_processor import open_processor

            processor = open_processor(folder / "processor")
        kind = "QwenImageEditInpaintPipeline"
        return QwenImageEdit(load_pipeline(kind, config, folder, index, NETWORKS, device, parts, processor=processor))


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the class's own size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, (*PARTS, "processor"))
    return qwen_image.schedule_at_native_size(place, num_inference_steps)
