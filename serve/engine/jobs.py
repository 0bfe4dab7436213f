"""What passes between the HTTP interface and the deployment that holds the policies."""

from dataclasses import dataclass, field

import numpy as np

from rlhf.promotion.catalogue import ServedPolicy

MAX_IMAGES = 8
"""The most samples that one request can ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Samples of one square, cut to the model's native size."""

    policy: ServedPolicy = field(default_factory=ServedPolicy)
    """Who paints."""
    image: np.ndarray
    """uint8 [native, native, 3]."""
    hole: np.ndarray
    """bool [native, native], True = repaint."""
    sample_indices: tuple[int, ...]
    """Which samples are wanted, at most MAX_IMAGES; sample i is the same whatever the others are."""
    seed: int
    """Of the initial noise."""
    tile: int = 0
    """Place among the squares of a large hole; each has noise of its own."""
    num_inference_steps: int
    """Denoising steps, deterministic DDIM."""
    start: np.ndarray | None = None
    """uint8 [n, native, native, 3], what to refine: the samples start from these images, noised; None is noise."""
    strength: float = 1.0
    """Share of the steps that are run where there is a `start`."""
    prompt: str = ""
    """Text for guidance, read only if there is a `guidance_scale`; and caption for rewards that compare texts."""
    guidance_scale: float | None = None
    """Classifier-free guidance towards the prompt; None paints without text, as the policy was aligned."""
    partial_images: int = 0
    """How often the estimate of the finished image is told before the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial:
    """The estimate of the finished images after some of the steps."""

    images: np.ndarray
    """uint8 [n, native, native, 3]."""
    index: int
    """0 for the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inpainted:
    """The answer to a Job."""

    images: np.ndarray
    """uint8 [n, native, native, 3]."""
    scores: tuple[dict[str, float | None], ...]
    """Reward, lower and upper of each native crop, None if unknown or not finite; empty without a reward."""
    unsafe: tuple[bool, ...]
    """Per image, what the pipeline's safety checker says; empty where it has none."""
    queued_s: float
    """From the job's arrival at the replica to its first step."""
    denoised_s: float
    """From there to its end."""
    batch_images: float
    """Mean number of images that were denoised together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What a replica holds."""

    native_px: int
    """Side of the square images that the model was made for."""
    has_reward: bool
    """Whether answers are scored."""
    reads_captions: bool = False
    """Whether the reward compares images with prompts, so that every request needs one."""
