"""What a request uploads: a photograph, and where it is to be repainted."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from rlhf.errors import UserError
from rlhf.images import decode_image
from serve.api_errors import ApiError

MAX_UPLOAD_BYTES = 25_000_000
"""Size of an uploaded file, as it comes."""
OPAQUE_FROM = 128
"""Alpha below this number is a hole, as in OpenAI's interface."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A photograph with a hole, upright."""

    rgb: np.ndarray
    """uint8 [H, W, 3], transparency on white: what the policy is shown."""
    rgba: np.ndarray
    """uint8 [H, W, 4], as it came: what known pixels are answered with."""
    hole: np.ndarray
    """bool [H, W], True = repaint."""


def read_upload(image: bytes, mask: bytes | None) -> Upload:
    """Decode a photograph and its hole: the transparent part of `mask`, or of the photograph itself.

    Raises ApiError naming the field that is unreadable, too large, of another size, or marks
    nothing (or everything) as hole.
    """
    rgb, alpha, colours = _read(image, "image")
    if mask is None:
        param, hole_alpha = "image", alpha
    else:
        param, hole_alpha = "mask", _read(mask, "mask")[1]
    if hole_alpha is None:
        raise ApiError(f"{param}: has no transparency; make the pixels to repaint transparent", param=param)
    if hole_alpha.shape != rgb.shape[:2]:
        sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (hole_alpha, rgb)]
        raise ApiError(f"mask is {sizes[0]}, image is {sizes[1]}; make them equal", param=param)
    hole = hole_alpha < OPAQUE_FROM
    if not hole.any():
        raise ApiError(f"{param}: no pixel is transparent; make the pixels to repaint transparent", param=param)
    if hole.all():
        raise ApiError(f"{param}: every pixel is transparent; leave some opaque (known)", param=param)
    opaque = np.full(rgb.shape[:2], 255, np.uint8) if alpha is None else alpha
    return Upload(rgb=rgb, rgba=np.dstack([colours, opaque]), hole=hole)


def _read(data: bytes, param: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Colours on white, alpha or None, and colours as they are under the alpha; all upright."""
    if len(data) > MAX_UPLOAD_BYTES:
        message = f"{param}: {len(data) / 1e6:.1f} MB is more than {MAX_UPLOAD_BYTES / 1e6:.0f} MB"
        raise ApiError(message, param=param, code=f"{param}_too_large", status=413)
    try:
        rgb = np.asarray(decode_image(data, name=param))
        with Image.open(io.BytesIO(data)) as opened:
            if "A" not in opened.mode and "transparency" not in opened.info:
                return rgb, None, rgb
            rgba = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA"))
    except (UserError, OSError, ValueError) as error:
        raise ApiError(str(error), param=param, code="invalid_image") from error
    return rgb, rgba[..., 3], rgba[..., :3]
