"""Uploads of the service: made-up holes and photographs as PNG bytes."""

import io

import numpy as np
from PIL import Image


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
