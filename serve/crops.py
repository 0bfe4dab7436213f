"""From a photograph of any size to the policy's square, and back into the hole."""

import numpy as np
from PIL import Image

from serve.uploads import Upload

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom exclusive."""


def crop_box(hole: np.ndarray, native_px: int) -> Box:
    """The square that the policy is shown: the hole in the middle, with known pixels around.

    Its side is twice the hole's, at least `native_px`, at most the short side of the photograph.
    A hole as long as the short side fits no square that also shows known pixels beyond it: the
    box is then the whole photograph, which `crop_to_native` squeezes into a square.
    `hole` is bool [H, W] with at least one True.
    """
    height, width = hole.shape
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    longest = int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1
    if longest >= min(height, width):
        return 0, 0, width, height
    side = min(max(2 * longest, native_px), height, width)
    left = _place(int(columns[0] + columns[-1] + 1), side, width)
    top = _place(int(rows[0] + rows[-1] + 1), side, height)
    return left, top, left + side, top + side


def _place(doubled_centre: int, side: int, length: int) -> int:
    return min(max((doubled_centre - side) // 2, 0), length - side)


def crop_to_native(upload: Upload, box: Box, native_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 [native, native, 3] and hole bool [native, native] of the box.

    A native pixel belongs to the hole where it touches a pixel of the hole. Pixels of the hole
    count for nothing in the resampling, so that what they hide does not tint known ones.
    """
    left, top, right, bottom = box
    rgb, hole = upload.rgb[top:bottom, left:right], upload.hole[top:bottom, left:right]
    if hole.shape == (native_px, native_px):
        return rgb, hole
    size = (native_px, native_px)
    # Pillow weighs the colours of RGBA by their alpha; HAMMING has no negative lobes, so nothing overshoots.
    known = Image.fromarray(np.dstack([rgb, np.where(hole, 0, 255).astype(np.uint8)]))
    coverage = Image.fromarray(hole.astype(np.float32)).resize(size, Image.Resampling.BOX)
    image = known.resize(size, Image.Resampling.HAMMING)
    return np.asarray(image)[..., :3], np.asarray(coverage) > 1e-6


def paste_back(upload: Upload, box: Box, inpainted: np.ndarray) -> Image.Image:
    """The photograph with its hole filled from `inpainted`, uint8 [native, native, 3].

    Known pixels are those of the upload bit for bit, transparency included; the hole is opaque.
    """
    left, top, right, bottom = box
    scaled = Image.fromarray(inpainted)
    if scaled.size != (right - left, bottom - top):
        scaled = scaled.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    hole = upload.hole[top:bottom, left:right]
    pixels = upload.rgba.copy()
    pixels[top:bottom, left:right, :3][hole] = np.asarray(scaled)[hole]
    pixels[upload.hole, 3] = 255
    return Image.fromarray(pixels if (pixels[..., 3] < 255).any() else pixels[..., :3])
