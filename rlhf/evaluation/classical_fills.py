"""Classical inpainting, a baseline for models: colours uint8 [H, W, 3], hole bool [H, W]; known pixels stay."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np

from rlhf.errors import UserError

OPENCV = ("telea", "navier-stokes")
CLASSICAL = ("biharmonic", *OPENCV)


def open_classical(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns one of CLASSICAL. Raises UserError if it needs OpenCV and OpenCV is not installed."""
    if name == "biharmonic":
        return fill_biharmonic
    if not find_spec("cv2"):
        raise UserError(
            f"{name}: needs OpenCV, which is not installed; pip install 'prefpaint-ray[fillers]', or use biharmonic"
        )
    return partial(fill_with_opencv, method=name)


def fill_biharmonic(rgb: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fills the hole with the smoothest surface through its border: scikit-image's biharmonic inpainting."""
    from skimage.restoration import inpaint_biharmonic

    filled = inpaint_biharmonic(rgb / 255, hole, split_into_regions=True, channel_axis=-1)
    return np.where(hole[..., None], (filled.clip(0, 1) * 255 + 0.5).astype(np.uint8), rgb)


def fill_with_opencv(rgb: np.ndarray, hole: np.ndarray, method: str) -> np.ndarray:
    """Fills the hole by OpenCV's `telea` (2004) or `navier-stokes` (Bertalmio et al. 2001) with radius 3.

    Raises ModuleNotFoundError if OpenCV is not installed; it is optional.
    """
    import cv2

    flag = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}[method]
    filled = cv2.inpaint(np.ascontiguousarray(rgb), hole.astype(np.uint8), 3, flag)
    return np.where(hole[..., None], filled, rgb)
