"""The seam for models: everything that is true of one kind of model only lies behind `ModelFamily`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from rlhf.config.run_config import PromptsConfig
from rlhf.data.buckets import Size, list_buckets
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from rlhf.data.prompts import Prompt


NEGATIVE = "negative/"
"""Before the names of a negative text's tensors."""


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """A text as a network reads it: one for all images, or one for each image."""

    embedding: torch.Tensor
    """float32 [1 or B, length, width]."""
    pooled: torch.Tensor | None
    """float32 [1 or B, width], for networks that read a pooled embedding; else None."""
    mask: torch.Tensor | None = None
    """bool [1 or B, length]: the tokens that count; None: all. Others fill up shorter texts."""
    negative: "TextEmbedding | None" = None
    """The text that true guidance leads away from, where it has an embedding for each picture; else None."""

    @classmethod
    def join(cls, texts: "Sequence[TextEmbedding]") -> "TextEmbedding":
        """The embeddings of several images, one image after another; shorter texts are filled up."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        longest = max(text.embedding.shape[1] for text in texts)
        missing = [longest - text.embedding.shape[1] for text in texts]
        mask = None
        if any(missing) or any(text.mask is not None for text in texts):
            mask = torch.cat([F.pad(text.counted(), (0, n)) for text, n in zip(texts, missing, strict=True)])
        return cls(
            embedding=torch.cat([F.pad(t.embedding, (0, 0, 0, n)) for t, n in zip(texts, missing, strict=True)]),
            pooled=torch.cat(pooled) if pooled else None,
            mask=mask,
            negative=cls.join(negatives) if (negatives := [t.negative for t in texts if t.negative]) else None,
        )

    @classmethod
    def from_tensors(cls, tensors: "Mapping[str, torch.Tensor]") -> "TextEmbedding":
        """Inverts `tensors`. Raises KeyError if there is no embedding."""
        negative = {name.removeprefix(NEGATIVE): t for name, t in tensors.items() if name.startswith(NEGATIVE)}
        return cls(
            embedding=tensors["embedding"],
            pooled=tensors.get("pooled"),
            mask=tensors.get("mask"),
            negative=cls.from_tensors(negative) if negative else None,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, as files hold them."""
        parts = {"embedding": self.embedding, "pooled": self.pooled, "mask": self.mask}
        negative = {} if self.negative is None else self.negative.tensors()
        parts |= {NEGATIVE + name: tensor for name, tensor in negative.items()}
        return {name: part for name, part in parts.items() if part is not None}

    def counted(self) -> torch.Tensor:
        """The mask, also where all tokens count."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.embedding.shape[:2], dtype=torch.bool, device=self.embedding.device)

    def expand(self, count: int) -> "TextEmbedding":
        """One for each of `count` images, of which each text has equally many, one after another; no negative text."""
        parts = (self.embedding, self.pooled, self.mask)
        rows = len(self.embedding)
        if rows == 1:
            embedding, pooled, mask = (None if part is None else part.expand(count, *part.shape[1:]) for part in parts)
        else:
            embedding, pooled, mask = (
                None if part is None else part.repeat_interleave(count // rows, dim=0) for part in parts
            )
        assert embedding is not None
        return TextEmbedding(embedding=embedding, pooled=pooled, mask=mask)

    def to(self, device: torch.device | str) -> "TextEmbedding":
        """The same on a device."""
        pooled, mask = (None if part is None else part.to(device) for part in (self.pooled, self.mask))
        negative = None if self.negative is None else self.negative.to(device)
        return TextEmbedding(embedding=self.embedding.to(device), pooled=pooled, mask=mask, negative=negative)


def zero_text(length: int, width: int, pooled: int | None, device: torch.device) -> TextEmbedding:
    """A text of `length` tokens and no meaning; `pooled` is the width of its pooled embedding, if it has one."""
    return TextEmbedding(
        embedding=torch.zeros(1, length, width, device=device),
        pooled=None if pooled is None else torch.zeros(1, pooled, device=device),
    )


def guide(positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2207.12598, eq. 6) of predictions [B, C, h, w] with two texts; 1 is none."""
    return negative + scale * (positive - negative)


def cells_of(latents: torch.Tensor) -> tuple[int, int]:
    """Height and width [latent cells] of latents or a condition, [..., h, w]."""
    height, width = latents.shape[-2:]
    return height, width


def device_of(*modules: Any) -> torch.device:
    """Device of the first of a pipeline's modules that is loaded; the others are None or lie on the meta device."""
    devices = [module.device for module in modules if module is not None]
    found: torch.device = next((device for device in devices if device.type != "meta"), torch.device("meta"))
    return found


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Which sides images of a pipeline may have, in pixels."""

    step_px: int
    """They are multiples of it."""
    longest_px: int | None = None
    """The longest that the network has places for; None: any."""

    def take(self, height: int, width: int) -> bool:
        """Whether the pipeline paints images of this size."""
        is_whole = height % self.step_px == width % self.step_px == 0
        return is_whole and (self.longest_px is None or max(height, width) <= self.longest_px)

    def __str__(self) -> str:
        """What follows "paints" in a message."""
        return f"multiples of {self.step_px} px" + ("" if self.longest_px is None else f" up to {self.longest_px} px")


def stack_prompts(prompts: "Sequence[Prompt]", sides: Sides, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [P, 3, H, W] and binary masks [P, 1, H, W] on `device`, split at 0.5 as diffusers' classes do it.

    Raises UserError unless H and W are among `sides`.
    """
    height, width = prompts[0].mask.shape[-2:]
    if not sides.take(height, width):
        raise UserError(
            f"prompts of {width}x{height} px: this model paints {sides}; "
            "cut others with --set prompts.size_px, or name another model"
        )
    images, masks = (torch.stack([getattr(p, part) for p in prompts]).to(device) for part in ("image", "mask"))
    return images, (masks >= 0.5).float()


class ModelFamily(Protocol):
    """A pipeline of one kind: how prompts enter its network, what the network predicts, and how latents become images.

    Latents are [B, C, h, w] and images [B, 3, H, W] in [-1, 1] for every family; what a prompt adds to the
    latents (mask, masked image) is the condition, whose layout only the family knows.
    """

    pipeline: Any
    """The diffusers pipeline."""
    network_name: str
    """Name of the trained network in the pipeline, in its folder, and in LoRA files."""
    lora_targets: tuple[str, ...]
    """Names of the network's modules that get an adapter by default."""
    network: Any
    """The module that predicts, a diffusers model; another of the same kind may take its place."""
    default_scale: float
    """Scale of guidance by which the pipeline's class paints by default."""
    unguided_scale: float
    """Scale that means no guidance."""
    reads_picture: bool
    """Whether the text encoder looks at the image, so that a text has an embedding for each picture."""

    @property
    def device(self) -> torch.device:
        """Device of the parts that are loaded."""

    @property
    def sides(self) -> Sides:
        """Which sides images may have."""

    @property
    def saw_squares_alone(self) -> bool:
        """Whether networks of this kind were trained on square images alone."""

    @property
    def native_px(self) -> int:
        """Side of the square images that the network was made for."""

    @property
    def native_cells(self) -> int:
        """The same side in latent cells."""

    def embed(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """A text as the pipeline itself embeds a prompt; text beyond the encoder's length is cut off.

        A family that `reads_picture` takes what is known of the image, uint8 [3, H, W]; without it, a grey picture.
        """

    def longest_text(self) -> TextEmbedding:
        """An embedding of as many tokens as a caption can have, of zeros on `device`: for planning by shapes."""

    def encode_prompts(self, prompts: "Sequence[Prompt]") -> tuple[torch.Tensor, torch.Tensor]:
        """The condition of P prompts, [P, K, h, w], and the hole in latent cells, [P, 1, h, w]: 1 where one touches it.

        Raises UserError if the family cannot paint images of this size.
        """

    def join_condition(self, mask: torch.Tensor, masked_image_latents: torch.Tensor) -> torch.Tensor:
        """The condition [B, K, h, w] of a hole in latent cells, [B, 1, h, w], and the latents of the masked image."""

    def known_latents(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """For a network that does not read the masked image: the hole [B, 1, h, w] and the known image's latents.

        After each step the known latents, noised again, take their place outside the hole. None for networks that
        read the masked image themselves.
        """

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images to clean latents, deterministically."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents to images."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of height x width latent cells."""

    def schedule(self, num_inference_steps: int, cells: tuple[int, int]) -> Schedule:
        """The noise levels of this many denoising steps, with their step rule, for images of height x width `cells`."""

    def predict(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
        precision: str,
    ) -> torch.Tensor:
        """One forward pass of `network` (the family's own, a copy, or an engine around it).

        Rollout, training, evaluation and serving all call it. Shapes: timestep [B], as the schedule has it; condition
        [B, K, h, w].
        `precision` is `fp32` or `bf16`, of the matrix products. Returns float32 [B, C, h, w].
        """

    def guide(self, positive: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """Guidance by the rule of the pipeline's class, of predictions [B, C, h, w] with two texts."""

    def find_unsafe(self, pixels: "np.ndarray") -> list[bool]:
        """Verdicts of the pipeline's own safety checker on images, uint8 [B, H, W, 3]; empty if it has none."""


def tile_sizes(family: ModelFamily) -> list[Size]:
    """Sizes, height and width, at which pictures of any size are painted, of at most the native number of pixels.

    They are those that `rlhf prompts --buckets` cuts at the native size; a network that saw squares alone has one.
    """
    native, sides = family.native_px, family.sides
    if family.saw_squares_alone:
        return [(native, native)]
    step_px = math.lcm(PromptsConfig(size_px=native).step_px, sides.step_px)
    return [size for size in list_buckets(native, step_px) if sides.take(*size)]
