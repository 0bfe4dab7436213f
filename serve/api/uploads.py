"""What a request uploads: a photograph, and where it is to be repainted."""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from rlhf.diffusion.tiles import Canvas
from rlhf.errors import UserError
from rlhf.storage.images import MAX_PIXELS, decode_image
from serve.api.api_errors import ApiError
from serve.api.file_ends import hides_another_file

MAX_UPLOAD_BYTES = 25_000_000
"""Size of an uploaded file, as it comes."""
Border = tuple[int, int, int, int]
"""Pixels left, at the top, right and at the bottom."""
OPAQUE_FROM = 128
"""Alpha below this number is a hole, as in OpenAI's interface."""


def read_upload(
    image: bytes,
    mask: bytes | None,
    *,
    convention: Literal["transparent", "white"] = "transparent",
    expand: Border | None = None,
) -> Canvas:
    """Decode a photograph and its hole: the transparent part of `mask`, or of the photograph itself.

    With the other `convention` it is the white part of `mask`. `expand` adds a border that is painted; a hole
    inside is then not needed. Raises ApiError naming the field that is unreadable, too large, of another size,
    or marks nothing (or everything) as hole.
    """
    rgb, alpha, colours = _read(image, "image")
    hole = _read_hole(rgb, alpha, mask, convention, is_optional=expand is not None and any(expand))
    opaque = np.full(rgb.shape[:2], 255, np.uint8) if alpha is None else alpha
    return _expand(Canvas(rgb=rgb, rgba=np.dstack([colours, opaque]), hole=hole), expand or (0, 0, 0, 0))


def count_pixels(*files: bytes | None, expand: Border | None = None) -> int:
    """How many pixels files hold by their headers, the border that `expand` adds to the first included.

    What cannot be told counts as nothing: `read_upload` will refuse it.
    """
    total, (left, top, right, bottom) = 0, expand or (0, 0, 0, 0)
    for data in filter(None, files):
        try:
            with Image.open(io.BytesIO(data)) as opened:
                width, height = opened.size
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        total += (width + left + right) * (height + top + bottom)
        left = top = right = bottom = 0
    return total


def _read_hole(
    rgb: np.ndarray, alpha: np.ndarray | None, mask: bytes | None, convention: str, *, is_optional: bool
) -> np.ndarray:
    """Bool [H, W]; where it is optional it may mark nothing."""
    param, marked = "image", alpha
    if mask is not None:
        _, mask_alpha, colours = _read(mask, "mask")
        param, marked = "mask", mask_alpha
        if convention == "white":
            # Strokes of white on nothing are white too, and what lies under transparency is not.
            shown = np.full(colours.shape[:2], 255, np.uint8) if mask_alpha is None else mask_alpha
            marked = 255 - np.minimum(colours.min(axis=2), shown)
    word = convention if mask is not None else "transparent"
    if marked is None and is_optional and mask is None:
        return np.zeros(rgb.shape[:2], bool)
    if marked is None:
        raise ApiError(f"{param}: has no transparency; make the pixels to repaint transparent", param=param)
    if marked.shape != rgb.shape[:2]:
        sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (marked, rgb)]
        raise ApiError(f"mask is {sizes[0]}, image is {sizes[1]}; make them equal", param=param)
    hole = marked < OPAQUE_FROM
    if not hole.any() and not is_optional:
        raise ApiError(f"{param}: no pixel is {word}; make the pixels to repaint {word}", param=param)
    if hole.all():
        raise ApiError(f"{param}: every pixel is {word}; leave some that are known", param=param)
    return hole


def _expand(upload: Canvas, border: Border) -> Canvas:
    left, top, right, bottom = border
    height, width = upload.hole.shape
    if (height + top + bottom) * (width + left + right) > MAX_PIXELS:
        raise ApiError(f"expand: more than {MAX_PIXELS / 1e6:.0f} megapixels; add less", param="expand")
    sides = ((top, bottom), (left, right))
    return Canvas(
        rgb=np.pad(upload.rgb, (*sides, (0, 0)), constant_values=255),
        rgba=np.pad(upload.rgba, (*sides, (0, 0)), constant_values=255),
        hole=np.pad(upload.hole, sides, constant_values=True),
    )


def _refuse_more_than_an_image(data: bytes, opened: Image.Image, param: str) -> None:
    # Phones' JPEGs hold several pictures (MPO), of which the first is the photograph.
    if getattr(opened, "is_animated", False) and opened.format != "MPO":
        raise ApiError(f"{param}: holds several pictures; send one", param=param, code="invalid_image")
    if hides_another_file(data, opened.format or ""):
        message = f"{param}: the file was cut short, or another one follows the image; send the image alone and whole"
        raise ApiError(message, param=param, code="invalid_image")


def _read(data: bytes, param: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Colours on white, alpha or None, and colours as they are under the alpha; all upright."""
    if len(data) > MAX_UPLOAD_BYTES:
        message = f"{param}: {len(data) / 1e6:.1f} MB is more than {MAX_UPLOAD_BYTES / 1e6:.0f} MB"
        raise ApiError(message, param=param, code=f"{param}_too_large", status=413)
    try:
        rgb = np.asarray(decode_image(data, name=param))
        with Image.open(io.BytesIO(data)) as opened:
            _refuse_more_than_an_image(data, opened, param)
            if "A" not in opened.mode and "transparency" not in opened.info:
                return rgb, None, rgb
            rgba = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA"))
    except (UserError, OSError, ValueError) as error:
        raise ApiError(str(error), param=param, code="invalid_image") from error
    return rgb, rgba[..., 3], rgba[..., :3]
