"""The messages between the HTTP interface and the deployment that holds the policies."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rlhf.data.buckets import Size
from rlhf.promotion.catalogue import ServedPolicy

MAX_IMAGES = 8
"""Most samples that one request can ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TileJob:
    """Samples of one tile, at one of the sizes that the model paints."""

    policy: ServedPolicy = field(default_factory=ServedPolicy)
    """The policy that paints."""
    image: np.ndarray
    """uint8 [h, w, 3]."""
    hole: np.ndarray
    """bool [h, w], True = repaint."""
    sample_indices: tuple[int, ...]
    """Indices of the samples, at most MAX_IMAGES; a sample does not depend on the others."""
    seed: int
    """Seed of the initial noise."""
    tile: int = 0
    """Position among the tiles of a large hole; each tile has noise of its own."""
    num_inference_steps: int
    """Number of deterministic denoising steps."""
    start: np.ndarray | None = None
    """uint8 [n, h, w, 3], images to refine, which are noised first; None starts from pure noise."""
    strength: float = 1.0
    """Share of the steps that are run if there is a `start`."""
    prompt: str = ""
    """Text for guidance, used only with `guidance_scale`, and caption for rewards that compare texts."""
    guidance_scale: float | None = None
    """Classifier-free guidance towards the prompt; None paints without text, as the policy was aligned."""
    partial_images: int = 0
    """Number of previews before the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial:
    """A preview: the finished images as predicted after some of the steps."""

    images: np.ndarray
    """uint8 [n, h, w, 3]."""
    index: int
    """0 for the first preview."""


class SampleScore(NamedTuple):
    """The reward of one image and its bound; None for a number that is not finite."""

    reward: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inpainted:
    """The answer to a TileJob."""

    images: np.ndarray
    """uint8 [n, h, w, 3]."""
    scores: tuple[SampleScore, ...]
    """Score of each image as it was painted; empty without a reward."""
    unsafe: tuple[bool, ...]
    """Per image, whether the pipeline's safety checker flags it; empty without a checker."""
    queued_s: float
    """Seconds from the job's arrival at the replica to its first step."""
    denoised_s: float
    """Seconds from the first step to the finished image."""
    batch_images: float
    """Mean number of images denoised together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A description of what a replica holds."""

    native_px: int
    """Side of the square images that the model was made for."""
    sizes: tuple[Size, ...]
    """Sizes, height and width, of the tiles that it paints; see `tile_sizes`."""
    has_reward: bool
    """Whether answers are scored."""
    reads_captions: bool = False
    """Whether the reward compares images with prompts, so that every request needs one."""
    is_guided: bool = True
    """Whether the model takes a second pass with the empty text, so that `guidance_scale` is free to choose."""
    unguided_scale: float = 1.0
    """The scale at which it reads the prompt in one pass."""

    def takes(self, guidance_scale: float | None) -> bool:
        """Whether a request may ask for this scale."""
        return self.is_guided or guidance_scale in (None, self.unguided_scale)

    def reads(self) -> dict[str, object]:
        """What requests may send, for clients: the prompt is read with a scale, and left away without one."""
        painted = ", ".join(f"{width}x{height}" for height, width in self.sizes)
        return {
            "prompt": "with guidance_scale",
            "negative_prompt": False,
            "guidance_scale": {"unguided": self.unguided_scale, "others": self.is_guided},
            "sizes": f"any, painted in the nearest shape, width x height, of {painted} px",
        }
