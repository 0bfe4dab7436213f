"""What passes between the HTTP interface and the deployment that holds the policy."""

from dataclasses import dataclass

import numpy as np

MAX_IMAGES = 8
"""Images per forward pass, and so the most samples that one request can ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One request, cut to the policy's native size."""

    image: np.ndarray
    """uint8 [native, native, 3]."""
    hole: np.ndarray
    """bool [native, native], True = repaint."""
    n: int
    """How many samples are wanted, at most MAX_IMAGES."""
    seed: int
    """Of the initial noise; sample i is the same whatever n is."""
    num_inference_steps: int
    """Denoising steps, deterministic DDIM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inpainted:
    """The answer to a Job."""

    images: np.ndarray
    """uint8 [n, native, native, 3]."""
    scores: tuple[dict[str, float | None], ...]
    """Per image: reward, lower, upper, of the native crop; empty without a reward model."""
    policy_version: int
    """Generation of the weights; 0 is the base model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What a replica holds."""

    native_px: int
    """Side of the square images that the policy was made for."""
    policy_version: int
    """Generation of the weights; 0 is the base model."""
    has_reward: bool
    """Whether answers are scored."""
