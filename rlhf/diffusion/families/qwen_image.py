"""Qwen-Image: a text-to-image transformer that inpaints by blending; its VAE is one for videos, used on one frame.

Two by two latent cells are packed into one token. The network predicts the velocity of flow matching.
"""

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import in_parts
from rlhf.diffusion.families.blending import Blending
from rlhf.diffusion.families.family import Sides, TextEmbedding, cells_of, guide, zero_text
from rlhf.diffusion.families.pipeline_folder import Part, check_channels, load_pipeline, read_index, read_part_config
from rlhf.diffusion.families.transformer import (
    NETWORKS,
    PARTS,
    SCHEDULERS,
    TokenFamily,
    pack,
    read_evenly_shifted,
    unpack,
)
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.errors import UserError

CLASSES = {
    "_class_name": ("QwenImageInpaintPipeline", "QwenImagePipeline"),
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
    "scheduler": SCHEDULERS,
}
LORA_TARGETS: tuple[str, ...] = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)
"""Modules that get an adapter by default: the attention layers of images and text."""
NATIVE_CELLS = 128
"""Side in latent cells that diffusers' class paints by default."""
TEXT_OPTIONS = {"length": 512}
"""Most tokens of a text, as the class paints by default."""


class QwenImage(Blending, TokenFamily):
    """The `ModelFamily` of QwenImageInpaintPipeline."""

    lora_targets = LORA_TARGETS
    default_scale = 4.0
    native_cells = NATIVE_CELLS

    @property
    def factor(self) -> int:
        """Pixels on the side of a latent cell."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def native_px(self) -> int:
        """Side of the square images that diffusers' class paints by default."""
        return NATIVE_CELLS * self.factor

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """The last hidden states of Qwen2.5-VL for the text in the class's own template, without its head."""
        embedding, mask = self.pipeline.encode_prompt(
            text, device=self.device, max_sequence_length=TEXT_OPTIONS["length"]
        )
        return TextEmbedding(embedding=embedding.float(), pooled=None, mask=None if mask is None else mask.bool())

    def longest_text(self) -> TextEmbedding:
        """As many tokens as a caption is cut to."""
        return zero_text(TEXT_OPTIONS["length"], self.network.config.joint_attention_dim, None, self.device)

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior's mode of one frame, normalised per channel by the VAE's own mean and deviation."""
        vae = self.pipeline.vae
        latents = in_parts(
            lambda part: vae.encode(part[:, :, None]).latent_dist.mode()[:, :, 0], images.to(vae.device), 1
        )
        return (latents - self._of_channels("latents_mean")) / self._of_channels("latents_std")

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        moved = latents * self._of_channels("latents_std") + self._of_channels("latents_mean")
        return in_parts(lambda part: self.pipeline.vae.decode(part[:, :, None]).sample[:, :, 0], moved, self.factor)

    def _of_channels(self, setting: str) -> torch.Tensor:
        return torch.tensor(self.pipeline.vae.config[setting], device=self.device).view(1, -1, 1, 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ModelFamily`."""
        return self.pipeline.vae.config.z_dim, height, width

    def arguments(self, latents: torch.Tensor, text: TextEmbedding) -> dict[str, Any]:
        """Sizes of the images in tokens; words that only fill up a shorter text are not looked at."""
        frame = (1, *(side // self.patch for side in cells_of(latents)))
        return {"encoder_hidden_states_mask": text.mask, "img_shapes": [[frame]] * len(latents)}

    def guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """Each token keeps the norm of its positive prediction."""
        wanted, guided = pack(positive), pack(guide(positive, negative, scale))
        ratio = wanted.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        return unpack(guided * ratio, cells_of(positive))


def open_pipeline(config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> QwenImage:
    """Open a pipeline of Qwen-Image; see `open_family`. A text-to-image pipeline inpaints by blending."""
    index = read_index(place, CLASSES, PARTS)
    check_network(place)
    return QwenImage(load_pipeline("QwenImageInpaintPipeline", config, place, index, NETWORKS, device, parts))


def read_schedule(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps at the class's own default size, from the pipeline's configuration alone."""
    read_index(place, CLASSES, PARTS)
    return schedule_at_native_size(place, num_inference_steps)


def schedule_at_native_size(place: Path, num_inference_steps: int) -> FlowSchedule:
    """The steps of a pipeline whose classes have been checked. Raises UserError if its network is of another kind."""
    check_network(place)
    return read_evenly_shifted(place, num_inference_steps, side=NATIVE_CELLS // QwenImage.patch)


def read_sides(place: Path) -> Sides:
    """Which sides images may have, from the pipeline's configuration alone."""
    return Sides(
        step_px=QwenImage.patch * 2 ** len(read_part_config(place, "vae", "config.json")["temperal_downsample"])
    )


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that a pipeline takes, its default first."""
    return ("none", "true")


def check_network(place: Path) -> None:
    """Raises UserError if the transformer reads anything but latents, time and text."""
    check_channels(place, {4 * int(read_part_config(place, "vae", "config.json")["z_dim"]): "latents alone"})
    network = read_part_config(place, "transformer", "config.json")
    for setting in ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"):
        if network.get(setting):
            raise UserError(f"{place}: its transformer has {setting}, which is not supported; check model.path")
