"""The requests that load the service: one photograph with a hole, and numbers of steps."""

import random

import numpy as np
from PIL import Image
from skimage import data as photographs

from rlhf.storage.images import encode_png

STEPS = 20
MIXED = (5, 20, 50)
"""Numbers of steps in mixed requests."""
SIDE = 64
"""Side of the photograph in pixels: the model's size."""


def make_files() -> dict[str, bytes]:
    """Returns a photograph at the model's size with a hole in its centre."""
    pixels = np.asarray(Image.fromarray(photographs.astronaut()[:400, 60:460]).resize((SIDE, SIDE)))
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[20:44, 20:44] = 0
    holed = Image.fromarray(np.dstack([pixels, alpha]))
    return {"image": encode_png(Image.fromarray(pixels)), "mask": encode_png(holed)}


FILES = make_files()


def draw_equal(number: int) -> dict[str, str]:
    """Returns the fields of a request of 20 steps."""
    return {"num_inference_steps": str(STEPS), "seed": str(number)}


def draw_mixed(number: int) -> dict[str, str]:
    """Returns the fields of a request of 5, 20 or 50 steps."""
    return {"num_inference_steps": str(random.Random(number).choice(MIXED)), "seed": str(number)}
