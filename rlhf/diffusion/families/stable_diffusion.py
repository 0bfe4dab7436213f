"""Stable Diffusion and SDXL inpainting: a UNet that reads latents, mask and masked-image latents side by side."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.families.pipeline_folder import fetch, load_parts, read_index, read_part_config
from rlhf.diffusion.steps.ddim import DDIMSchedule, make_schedule
from rlhf.errors import UserError
from rlhf.storage.images import blank_hole
from rlhf.storage.url_path import local_copy

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

    from rlhf.data.prompts import Prompt

# diffusers takes 4 s to import, and half of this module's users need not wait for it.

CLASSES = {
    "_class_name": ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
"""Supported classes of the pipeline and of the parts that could be of others."""
NETWORKS = ("vae", "text_encoder", "text_encoder_2", "unet")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler", "safety_checker", "feature_extractor", "image_encoder")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out")
"""Modules that get an adapter by default."""
DECODED_PIXELS = 2**22
"""Pixels decoded at once, 16 images of 512 px: with twice as many, a tensor inside SD's VAE has 2^31 elements."""


class StableDiffusion:
    """A `ModelFamily`. SDXL's pipeline has another class, a second text encoder and a size conditioning."""

    network_name = "unet"
    lora_targets = LORA_TARGETS

    def __init__(self, pipeline: "StableDiffusionInpaintPipeline", scheduler: "DDIMScheduler") -> None:
        """Wrap a pipeline; its own scheduler is replaced by DDIM of the same noise levels."""
        self.pipeline, self._scheduler = pipeline, scheduler

    @classmethod
    def open(
        cls, config: ModelConfig, place: Path, device: torch.device, *, with_safety_checker: bool = False
    ) -> "StableDiffusion":
        """Open the folder, URL or hub name `place` on `device`, frozen.

        The safety checker is left out unless asked for: training judges images by the reward alone. Raises UserError
        if the pipeline is incomplete, damaged or of another kind.
        """
        scheduler = _read_scheduler(place)
        with local_copy(place) as local:
            pipeline = _load(config, local, with_safety_checker=with_safety_checker)
        pipeline.to(device)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        pipeline.unet.to(memory_format=torch.channels_last)
        _set_attention(pipeline, config.attention, device)
        return cls(pipeline, scheduler)

    @property
    def network(self) -> "UNet2DConditionModel":
        """The UNet."""
        return self.pipeline.unet

    @network.setter
    def network(self, network: "UNet2DConditionModel") -> None:
        self.pipeline.unet = network

    @property
    def device(self) -> torch.device:
        """Device of the UNet."""
        return self.network.device

    @property
    def native_px(self) -> int:
        """Side of the square images that the UNet was made for."""
        return self.native_cells * self.pipeline.vae_scale_factor

    @property
    def native_cells(self) -> int:
        """The same side in latent cells."""
        return int(self.network.config.sample_size)

    @torch.no_grad()
    def embed(self, text: str) -> TextEmbedding:
        """See `ModelFamily`."""
        embedding, _, *pooled = self.pipeline.encode_prompt(
            text, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return TextEmbedding(embedding=embedding.float(), pooled=pooled[0].float() if pooled else None)

    @torch.no_grad()
    def encode_prompts(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Condition [P, 5, h, w]: mask, then masked-image latents.

        The condition's mask is sampled as diffusers' pipeline samples it (nearest), so that a policy's folder works
        there; the hole mask of log-probs holds every cell that touches the hole.
        """
        height, width, factor = *prompts[0].mask.shape[-2:], self.pipeline.vae_scale_factor
        if height % factor or width % factor:
            raise UserError(
                f"prompts of {width}x{height} px: this model paints multiples of {factor} px; "
                "cut others with --set prompts.size_px, or name another model"
            )
        images = torch.stack([p.image for p in prompts]).to(self.device)
        masks = torch.stack([p.mask for p in prompts]).to(self.device)
        masked_image_latents = self.encode_images(blank_hole(images, masks))
        size = masked_image_latents.shape[-2:]
        condition = self.join_condition(F.interpolate(masks, size=size), masked_image_latents)
        return condition, F.adaptive_max_pool2d(masks, size)

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """Mask and masked-image latents as channels side by side."""
        return torch.cat([mask, masked_image_latents], dim=1)

    def known_latents(self, condition: torch.Tensor) -> None:
        """None: the UNet reads the masked image."""

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, 4, h, w]: the posterior's mode."""
        vae = self.pipeline.vae
        return vae.encode(images.to(self.device)).latent_dist.mode() * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`; batches are decoded in parts that fit the VAE."""
        vae = self.pipeline.vae
        pixels = latents.shape[-2] * latents.shape[-1] * self.pipeline.vae_scale_factor**2
        parts = (latents / vae.config.scaling_factor).split(max(1, DECODED_PIXELS // pixels))
        return torch.cat([vae.decode(part).sample.float() for part in parts])

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ModelFamily`."""
        return self.pipeline.vae.config.latent_channels, height, width

    def schedule(self, num_inference_steps: int, cells: tuple[int, int]) -> DDIMSchedule:
        """DDIM's steps at the noise levels of the scheduler that the pipeline's folder names."""
        return make_schedule(self._scheduler, num_inference_steps)

    def predict(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
        precision: str,
    ) -> torch.Tensor:
        """One forward pass of the 9-channel UNet: latents [B, 4, h, w], condition [B, 5, h, w]."""
        inputs = torch.cat([latents, condition], dim=1)
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return network(inputs, timestep, **self.text_inputs(text, latents), return_dict=False)[0].float()

    def text_inputs(self, text: TextEmbedding, latents: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments of the UNet for each of the B latents."""
        count, _, height, width = latents.shape
        inputs: dict[str, Any] = {"encoder_hidden_states": text.embedding.expand(count, -1, -1)}
        if text.pooled is not None:
            size = [side * self.pipeline.vae_scale_factor for side in (height, width)]
            # SDXL's size conditioning (arXiv:2307.01952, section 2.2): original size, crop's corner, target size.
            time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=latents.device)
            inputs["added_cond_kwargs"] = {
                "text_embeds": text.pooled.expand(count, -1),
                "time_ids": time_ids.expand(count, -1),
            }
        return inputs

    def find_unsafe(self, pixels: np.ndarray) -> list[bool]:
        """See `ModelFamily`."""
        if getattr(self.pipeline, "safety_checker", None) is None:
            return []
        inputs = self.pipeline.feature_extractor(list(pixels), return_tensors="pt").to(self.device)
        shown = pixels.astype(np.float32) / 255
        _, flagged = self.pipeline.safety_checker(images=shown, clip_input=inputs.pixel_values)
        return [bool(flag) for flag in flagged]


open_pipeline = StableDiffusion.open


def read_schedule(place: Path, num_inference_steps: int) -> DDIMSchedule:
    """The steps of the pipeline at a folder, URL or hub name, from its configuration alone.

    Raises UserError if the pipeline's class, a part of it or its scheduler is not supported.
    """
    return make_schedule(_read_scheduler(place), num_inference_steps)


def _read_scheduler(place: Path) -> "DDIMScheduler":
    import diffusers

    from rlhf.diffusion.steps.ddim_scheduler import ddim_for

    index = read_index(place, CLASSES, PARTS)
    unet = read_part_config(place, "unet", "config.json")
    if unet.get("in_channels") != 9:
        raise UserError(f"{place}: its UNet takes {unet.get('in_channels')} channels; inpainting needs 9")
    if unet.get("time_cond_proj_dim") is not None:
        raise UserError(f"{place}: its UNet is distilled and reads a guidance scale (time_cond_proj_dim); use its base")
    kind = (index.get("scheduler") or ("no scheduler",))[-1]
    config = read_part_config(place, "scheduler", "scheduler_config.json")
    return ddim_for(kind, config, getattr(diffusers, index["_class_name"]), str(place))


def _load(config: ModelConfig, place: Path, *, with_safety_checker: bool) -> "StableDiffusionInpaintPipeline":
    """The pipeline at a folder or hub name; SDXL's class is Stable Diffusion's sibling in all that is used here."""
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    index = read_index(place, CLASSES, PARTS)
    folder = fetch(place, config.variant)
    checker = ("safety_checker",) if with_safety_checker and index.get("safety_checker") else ()
    networks: dict[str, Any] = load_parts(folder, index, (*NETWORKS, *checker), config.variant)
    kind = getattr(diffusers, index["_class_name"])
    if kind is diffusers.StableDiffusionInpaintPipeline and "safety_checker" not in networks:
        networks |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # Of its scheduler, which is not used.
            pipeline = kind.from_pretrained(folder, image_encoder=None, **networks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{config.path}: not a complete {kind.__name__} ({reason}); check model.path") from error
    pipeline.set_progress_bar_config(disable=True)
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


def network_on_meta(place: Path) -> "UNet2DConditionModel":
    """The UNet of a pipeline (folder, URL or hub name) without memory for its weights, from its configuration alone.

    Raises UserError if there is none.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(read_part_config(place, "unet", "config.json"))
