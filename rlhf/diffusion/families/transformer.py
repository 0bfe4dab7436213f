"""What families with a diffusion transformer and an AutoencoderKL have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.autoencoder import decode, encode, factor_of
from rlhf.diffusion.families.pipeline_folder import fetch, load_parts, read_index, read_part_config
from rlhf.errors import UserError
from rlhf.storage.url_path import local_copy

if TYPE_CHECKING:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    from rlhf.data.prompts import Prompt


SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
NETWORKS = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer")
PARTS = (
    *NETWORKS,
    *("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", "image_encoder", "feature_extractor"),
)


class TransformerFamily:
    """A `ModelFamily` but for text, condition, schedule and forward pass."""

    network_name = "transformer"
    lora_targets: tuple[str, ...]
    patch = 2
    """Latent cells on the side of a token."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def network(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    @network.setter
    def network(self, network: torch.nn.Module) -> None:
        self.pipeline.transformer = network

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return self.network.device

    @property
    def native_px(self) -> int:
        """Side of the square images that the VAE was made for: a transformer is not bound to one size."""
        return int(self.pipeline.vae.config.sample_size)

    @property
    def native_cells(self) -> int:
        """The same side in latent cells."""
        return self.native_px // factor_of(self.pipeline.vae)

    def read(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Images [P, 3, H, W] and binary masks [P, 1, H, W]; raises UserError if they do not fill whole tokens."""
        height, width = prompts[0].mask.shape[-2:]
        side = self.patch * factor_of(self.pipeline.vae)
        if height % side or width % side:
            raise UserError(
                f"prompts of {width}x{height} px: this model paints multiples of {side} px; "
                "cut others with --set prompts.size_px, or name another model"
            )
        images = torch.stack([p.image for p in prompts]).to(self.device)
        masks = torch.stack([p.mask for p in prompts]).to(self.device)
        return images, (masks >= 0.5).float()

    def inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Channels [B, K, h, w] that the network reads, before they are packed."""
        raise NotImplementedError

    def count_tokens(self, cells: tuple[int, int]) -> int:
        """Number of tokens of an image of height x width latent cells."""
        return (cells[0] // self.patch) * (cells[1] // self.patch)

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return encode(self.pipeline.vae, images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return decode(self.pipeline.vae, latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ModelFamily`."""
        return self.pipeline.vae.config.latent_channels, height, width

    def find_unsafe(self, pixels: "np.ndarray") -> list[bool]:
        """These pipelines have no safety checker."""
        return []


def open_parts(
    kind: str, config: ModelConfig, place: Path, device: torch.device, classes: Mapping[str, tuple[str, ...]]
) -> Any:
    """The pipeline of diffusers' class `kind` from a folder, URL or hub name, frozen on `device`.

    `classes` gives the supported classes of the pipeline and of its parts. Raises UserError if it is incomplete,
    damaged or of another kind.
    """
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    index = read_index(place, classes, PARTS)
    with local_copy(place) as local:
        folder = fetch(local, config.variant)
        networks = load_parts(folder, index, NETWORKS, config.variant)
        try:
            pipeline = getattr(diffusers, kind).from_pretrained(folder, **networks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{config.path}: not a complete {kind} ({reason}); check model.path") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    for part in networks.values():
        part.requires_grad_(False).eval()
    return pipeline


def read_flow_scheduler(place: Path) -> "FlowMatchEulerDiscreteScheduler":
    """The scheduler of a pipeline whose classes have been checked, from its configuration."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_config(read_part_config(place, "scheduler", "scheduler_config.json"))


def check_channels(place: Path, expected: Mapping[int, str]) -> str:
    """What the transformer of a pipeline reads, by its number of input channels; raises UserError for any other."""
    found = int(read_part_config(place, "transformer", "config.json").get("in_channels", 0))
    if found not in expected:
        known = ", ".join(f"{channels} ({what})" for channels, what in expected.items())
        raise UserError(f"{place}: its transformer reads {found} channels; supported are {known}; check model.path")
    return expected[found]
