"""What families with a diffusion transformer and an AutoencoderKL have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from rlhf.diffusion.families.autoencoder import decode, encode, factor_of, read_factor
from rlhf.diffusion.families.family import Sides, TextEmbedding, cells_of, device_of, guide, stack_prompts
from rlhf.diffusion.families.pipeline_folder import quieten_diffusers, read_part_config
from rlhf.diffusion.precision import in_precision
from rlhf.diffusion.steps.flow_matching import FlowRule, FlowSchedule, make_flow_schedule

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


class TransformerFamily(ABC):
    """A `ModelFamily` but for text, condition, schedule and forward pass."""

    network_name = "transformer"
    rule: FlowRule = "ddim"
    """Rule of the stochastic steps."""
    unguided_scale = 1.0
    reads_picture = False
    saw_squares_alone = False
    default_scale: float
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
        """Device of the parts that are loaded."""
        return device_of(self.network, self.pipeline.vae, self.pipeline.text_encoder)

    @property
    def native_px(self) -> int:
        """Side of the square images that the VAE was made for: a transformer is not bound to one size."""
        return int(self.pipeline.vae.config.sample_size)

    @property
    def factor(self) -> int:
        """Pixels on the side of a latent cell."""
        return factor_of(self.pipeline.vae)

    @property
    def sides(self) -> Sides:
        """Whole tokens."""
        return Sides(step_px=self.patch * self.factor)

    @property
    def native_cells(self) -> int:
        """The same side in latent cells."""
        return self.native_px // self.factor

    def read(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """Images [P, 3, H, W] and binary masks [P, 1, H, W]; raises UserError if they do not fill whole tokens."""
        return stack_prompts(prompts, self.sides, self.device)

    def levels(self, num_inference_steps: int, cells: tuple[int, int]) -> FlowSchedule:
        """The noise levels of `schedule`; a dynamic shift depends on the number of tokens."""
        return evenly_shifted(self.pipeline.scheduler, num_inference_steps, tokens=self.count_tokens(cells))

    def schedule(self, num_inference_steps: int, cells: tuple[int, int]) -> FlowSchedule:
        """The noise levels of the pipeline's own scheduler, with the step rule `rule`."""
        return replace(self.levels(num_inference_steps, cells), rule=self.rule)

    @abstractmethod
    def inputs(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Channels [B, K, h, w] that the network reads, before they are packed."""

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

    def guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """See `ModelFamily`."""
        return guide(positive, negative, scale)

    def find_unsafe(self, pixels: "np.ndarray") -> list[bool]:
        """These pipelines have no safety checker."""
        return []


class TokenFamily(TransformerFamily):
    """A family whose network reads packed latents as tokens, in one sequence with those of a text."""

    reads_known = False
    """Whether the known image's tokens come after those of the latents."""

    def predict(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
        precision: str,
    ) -> torch.Tensor:
        """One forward pass over all tokens, packed and numbered as the pipeline's class does it."""
        cells, text = cells_of(latents), text.expand(len(latents))
        tokens = pack(self.inputs(latents, condition), self.patch)
        count = tokens.shape[1]
        if self.reads_known:
            known = self.known_latents(condition)
            assert known is not None, "a network without the known image has nothing to append"
            tokens = torch.cat([tokens, pack(known[1], self.patch)], dim=1)
        with in_precision(latents.device, precision):
            output = network(
                hidden_states=tokens,
                timestep=timestep / 1000,
                encoder_hidden_states=text.embedding,
                return_dict=False,
                **self.arguments(latents, text),
            )[0]
        return unpack(output[:, :count].float(), cells, self.patch)

    @abstractmethod
    def arguments(self, latents: torch.Tensor, text: TextEmbedding) -> dict[str, Any]:
        """Further arguments of the network for latents [B, C, h, w] and B texts, such as the places of tokens."""

    @abstractmethod
    def known_latents(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See `ModelFamily`."""


def pack(latents: torch.Tensor, patch: int = 2) -> torch.Tensor:
    """Channels [B, K, h, w] as tokens [B, h w / patch^2, K patch^2], row by row."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def unpack(tokens: torch.Tensor, cells: tuple[int, int], patch: int = 2) -> torch.Tensor:
    """Tokens as channels [B, K, h, w] of height x width `cells`."""
    grid = (cells[0] // patch, cells[1] // patch)
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), patch)


def evenly_shifted(
    scheduler: "FlowMatchEulerDiscreteScheduler", num_inference_steps: int, *, tokens: int, mu: float | None = None
) -> FlowSchedule:
    """The levels 1, 1 - 1/T, ..., 1/T, shifted as `make_flow_schedule` says."""
    even = [1 - step / num_inference_steps for step in range(num_inference_steps)]
    return make_flow_schedule(scheduler, even, tokens=tokens, mu=mu)


def read_evenly_shifted(place: Path, num_inference_steps: int, *, side: int) -> FlowSchedule:
    """`evenly_shifted` for images of side x side tokens, from the configuration of a pipeline's scheduler alone."""
    return evenly_shifted(read_flow_scheduler(place), num_inference_steps, tokens=side**2)


def read_native_cells(place: Path) -> int:
    """Side in latent cells of the square images that the VAE of a pipeline was made for."""
    return int(read_part_config(place, "vae", "config.json")["sample_size"]) // read_factor(place)


def read_flow_scheduler(place: Path) -> "FlowMatchEulerDiscreteScheduler":
    """The scheduler of a pipeline whose classes have been checked, from its configuration."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    quieten_diffusers()
    return FlowMatchEulerDiscreteScheduler.from_config(read_part_config(place, "scheduler", "scheduler_config.json"))
