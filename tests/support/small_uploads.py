"""Uploads of the service: made-up holes and photographs as PNG bytes, and their decoding."""

import io

import numpy as np
from PIL import Image

from rlhf.diffusion.tiles import Canvas
from serve.api.edit_request import EditRequest
from serve.api.upload import open_upload


def png(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def hole_in(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    hole[top:bottom, left:right] = True
    return hole


def mask_png(hole: np.ndarray) -> bytes:
    alpha = np.where(hole, 0, 255).astype(np.uint8)
    return png(np.dstack([np.zeros((*hole.shape, 3), np.uint8), alpha]))


def read_upload(image: bytes, mask: bytes | None, **fields: object) -> Canvas:
    """Decodes the files of a request with these fields."""
    return open_upload(image, mask, EditRequest.model_validate(fields)).decode()
