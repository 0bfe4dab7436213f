"""Small photographs in a folder, and the settings of small rounds with them."""

from pathlib import Path

import numpy as np
from PIL import Image
from small_parts import FAST

HEIGHT, WIDTH = 24, 120
TINY_ROUNDS = {
    "prompts": {"size_px": 32, "crops_per_photograph": 2},
    "candidates": {"samples_per_prompt": 4, "num_inference_steps": [2]},
    "reward": {"feature_dim": 8, "epochs": 2, "micro_batch_size": 32, "decorrelation": 1.0},
    "align": FAST | {"updates": 1, "prompts_per_update": 2, "num_inference_steps": 3, "average_decay": 0.0},
    "cluster": {"samplers": 1},
    "evaluate": {"samples_per_prompt": 1, "num_inference_steps": 2},
}
"""Settings of rounds that end within seconds."""


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


def write_smooth_photographs(folder: Path, count: int) -> Path:
    """Smooth pictures, so that the reward's features differ from one to the next."""
    folder.mkdir()
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = (rng.random((6, 6, 3)) * 255).astype(np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder
