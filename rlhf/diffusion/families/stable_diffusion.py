"""Stable Diffusion and SDXL: a UNet that reads latents, mask and masked image, or a text-to-image UNet by blending."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import decode, encode, read_factor
from rlhf.diffusion.families.blending import Blending
from rlhf.diffusion.families.family import Sides, TextEmbedding, device_of, guide, stack_prompts, zero_text
from rlhf.diffusion.families.masked_image import MaskedImage
from rlhf.diffusion.families.pipeline_folder import Part, check_channels, load_pipeline, read_index, read_part_config
from rlhf.diffusion.precision import in_precision
from rlhf.diffusion.steps.ddim import DDIMSchedule, make_schedule
from rlhf.errors import UserError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

    from rlhf.data.prompts import Prompt

CLASSES = {
    "_class_name": (
        *("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
        *("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    ),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
"""Supported classes of the pipeline and of the parts that could be of others."""
NETWORKS = ("vae", "text_encoder", "text_encoder_2", "unet")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "scheduler", "safety_checker", "feature_extractor", "image_encoder")
LORA_TARGETS: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out")
"""Modules that get an adapter by default."""
TEXT_OPTIONS: dict[str, int] = {}
"""Nothing: the tokenizers say how many tokens a text has."""


class StableDiffusion(MaskedImage):
    """A `ModelFamily`. SDXL's pipeline has another class, a second text encoder and a size conditioning."""

    network_name = "unet"
    unguided_scale = 1.0
    reads_picture = False
    default_scale = 7.5
    lora_targets = LORA_TARGETS
    words = 77
    """Length of CLIP's texts in tokens."""

    def __init__(self, pipeline: "StableDiffusionInpaintPipeline", scheduler: "DDIMScheduler") -> None:
        """Wrap a pipeline; its own scheduler is replaced by DDIM of the same noise levels."""
        self.pipeline, self._scheduler = pipeline, scheduler

    @classmethod
    def open(cls, config: ModelConfig, place: Path, device: torch.device, parts: Set[Part]) -> "StableDiffusion":
        """Open some parts of the pipeline at the folder, URL or hub name `place`, frozen; see `open_family`."""
        index = read_index(place, CLASSES, PARTS)
        scheduler = _read_scheduler(place, index)
        library, *_ = (index.get("safety_checker") if Part.SAFETY_CHECKER in parts else None) or (None,)
        kind, checker = _class_that_inpaints(index), ("safety_checker",) if library else ()
        given: dict[str, Any] = {"image_encoder": None}
        if kind == "StableDiffusionInpaintPipeline" and not checker:
            given |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = load_pipeline(kind, config, place, index, (*NETWORKS, *checker), device, parts, **given)
        pipeline.unet.to(memory_format=torch.channels_last)
        _set_attention(pipeline, config.attention, device)
        kind_of = cls if _reads_mask(place) else StableDiffusionBlend
        opened = kind_of(pipeline, scheduler)
        if not parts:
            encoder = read_part_config(place, "text_encoder", "config.json")
            opened.words = int(encoder["max_position_embeddings"])
        return opened

    @property
    def network(self) -> "UNet2DConditionModel":
        """The UNet."""
        return self.pipeline.unet

    @network.setter
    def network(self, network: "UNet2DConditionModel") -> None:
        self.pipeline.unet = network

    @property
    def device(self) -> torch.device:
        """Device of the parts that are loaded."""
        return device_of(self.network, self.pipeline.vae, self.pipeline.text_encoder)

    @property
    def native_px(self) -> int:
        """Side of the square images that the UNet was made for."""
        return self.native_cells * self.pipeline.vae_scale_factor

    @property
    def saw_squares_alone(self) -> bool:
        """Not SDXL, which saw shapes of one area (arXiv:2307.01952, section 2.3)."""
        return self.network.config.addition_embed_type is None

    @property
    def sides(self) -> Sides:
        """Whole latent cells."""
        return Sides(step_px=int(self.pipeline.vae_scale_factor))

    @property
    def native_cells(self) -> int:
        """The same side in latent cells."""
        return int(self.network.config.sample_size)

    @torch.no_grad()
    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """See `ModelFamily`."""
        embedding, _, *pooled = self.pipeline.encode_prompt(
            text, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return TextEmbedding(embedding=embedding.float(), pooled=pooled[0].float() if pooled else None)

    def longest_text(self) -> TextEmbedding:
        """As many tokens as CLIP reads."""
        config = self.network.config
        times = 6 * (config.addition_time_embed_dim or 0)
        pooled = config.projection_class_embeddings_input_dim
        width = None if config.addition_embed_type is None else pooled - times
        return zero_text(self.words, config.cross_attention_dim, width, self.device)

    def read(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Images [P, 3, H, W] and binary masks [P, 1, H, W]; raises UserError if they do not fill whole cells."""
        return stack_prompts(prompts, self.sides, self.device)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, 4, h, w]: the posterior's mode."""
        return encode(self.pipeline.vae, images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`; batches are decoded in parts that fit the VAE."""
        return decode(self.pipeline.vae, latents)

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
        """One forward pass of the UNet."""
        inputs = self.inputs(latents, condition)
        with in_precision(latents.device, precision):
            return network(inputs, timestep, **self.text_inputs(text, latents), return_dict=False)[0].float()

    def text_inputs(self, text: TextEmbedding, latents: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments of the UNet for each of the B latents."""
        count, _, height, width = latents.shape
        text = text.expand(count)
        inputs: dict[str, Any] = {"encoder_hidden_states": text.embedding}
        if text.pooled is not None:
            size = [side * self.pipeline.vae_scale_factor for side in (height, width)]
            # SDXL's size conditioning (arXiv:2307.01952, section 2.2): original size, crop's corner, target size.
            time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=latents.device)
            inputs["added_cond_kwargs"] = {
                "text_embeds": text.pooled,
                "time_ids": time_ids.expand(count, -1),
            }
        return inputs

    def guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return guide(positive, negative, scale)

    def find_unsafe(self, pixels: np.ndarray) -> list[bool]:
        """See `ModelFamily`."""
        if getattr(self.pipeline, "safety_checker", None) is None:
            return []
        inputs = self.pipeline.feature_extractor(list(pixels), return_tensors="pt").to(self.device)
        shown = pixels.astype(np.float32) / 255
        _, flagged = self.pipeline.safety_checker(images=shown, clip_input=inputs.pixel_values)
        return [bool(flag) for flag in flagged]


class StableDiffusionBlend(Blending, StableDiffusion):
    """The `ModelFamily` of text-to-image UNets, which read the latents alone."""


open_pipeline = StableDiffusion.open


def read_schedule(place: Path, num_inference_steps: int) -> DDIMSchedule:
    """The steps of the pipeline at a folder, URL or hub name, from its configuration alone.

    Raises UserError if the pipeline's class, a part of it or its scheduler is not supported.
    """
    return make_schedule(_read_scheduler(place, read_index(place, CLASSES, PARTS)), num_inference_steps)


def _read_scheduler(place: Path, index: Mapping[str, Any]) -> "DDIMScheduler":
    import diffusers

    from rlhf.diffusion.steps.ddim_scheduler import ddim_for

    _reads_mask(place)
    if read_part_config(place, "unet", "config.json").get("time_cond_proj_dim") is not None:
        raise UserError(f"{place}: its UNet is distilled and reads a guidance scale (time_cond_proj_dim); use its base")
    kind = (index.get("scheduler") or ("no scheduler",))[-1]
    config = read_part_config(place, "scheduler", "scheduler_config.json")
    return ddim_for(kind, config, getattr(diffusers, _class_that_inpaints(index)), str(place))


def _class_that_inpaints(index: Mapping[str, Any]) -> str:
    is_xl = str(index["_class_name"]).startswith("StableDiffusionXL")
    return "StableDiffusionXLInpaintPipeline" if is_xl else "StableDiffusionInpaintPipeline"


def _reads_mask(place: Path) -> bool:
    """Whether the UNet reads mask and masked image; raises UserError if it reads anything else."""
    layouts = {9: "latents, mask and masked image", 4: "latents alone"}
    return check_channels(place, layouts, "unet") != "latents alone"


def _set_attention(pipeline: "StableDiffusionInpaintPipeline", choice: str, device: torch.device) -> None:
    if choice != "xformers":
        return
    if device.type != "cuda":
        raise UserError("model.attention: xformers needs a CUDA GPU; use auto")
    try:
        pipeline.unet.enable_xformers_memory_efficient_attention()
    except ModuleNotFoundError as error:
        raise UserError("model.attention: xformers is not installed; pip install 'prefpaint-ray[gpu]'") from error


def read_sides(place: Path) -> Sides:
    """Which sides images may have, from the pipeline's configuration alone."""
    return Sides(step_px=read_factor(place))


def guidance_kinds(place: Path) -> tuple[str, ...]:
    """Values of `model.guidance` that a pipeline takes, its default first."""
    return ("none", "true")
