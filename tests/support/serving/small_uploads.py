"""Uploads of the service: made-up holes and photographs as PNG bytes, and their decoding."""

import asyncio
import io

import numpy as np
from PIL import Image

from rlhf.diffusion.tiles import Canvas
from serve.api.decoder import Decoder
from serve.api.edit_request import EditRequest
from serve.api.upload import Parts, Upload, open_upload

DECODER = Decoder()
"""The decoder of all tests of a process; it starts with the first picture."""


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


def look_at(image: bytes, mask: bytes | None, **fields: object) -> Upload:
    """Reads the heads of the files of a request with these fields."""
    parts = Parts(asked=EditRequest.model_validate(fields), image=image, mask=mask)
    return asyncio.run(open_upload(parts, DECODER))


def read_upload(image: bytes, mask: bytes | None, **fields: object) -> Canvas:
    """Decodes the files of a request with these fields."""
    return asyncio.run(look_at(image, mask, **fields).decode(DECODER))
