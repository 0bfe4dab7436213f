"""Small photographs in a folder."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 120


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth, and nowhere as grey as what is not painted."""
    rng = np.random.default_rng(seed)
    pixels = Image.fromarray(rng.integers(0, 100, (4, 12, 3), dtype=np.uint8))
    return np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC)) // 2 + np.uint8(10 * (seed % 3))


def write_photographs(folder: Path) -> Path:
    """Seven of them, as PNG."""
    folder.mkdir()
    for seed in range(7):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    return folder
