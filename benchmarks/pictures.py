"""Paints the README's figure: `python -m benchmarks.pictures --policy FOLDER --out FILE.png`.

The rule: the first eight held-out photographs of the demo by name, one row each, cut to the middle 128 px at full
resolution; holes of the families box, brush and warp in turn, drawn by the photograph's name; one sample
each, the first. Columns: masked, base model, aligned model (the same noise), original.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from rlhf.config.run_config import ModelConfig
from rlhf.data.holes import draw_hole
from rlhf.data.photographs import HELD_OUT
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.tile_painting import paint, to_canvas
from rlhf.storage.images import decode_image, list_photographs

SIDE_PX, ROWS, GAP_PX, STEPS = 128, 8, 4, 10
HOLES = ("box", "brush", "warp")


def masked_photograph(path: Path, hole: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the middle of a photograph, uint8 [S, S, 3], and a hole of that family, bool [S, S]."""
    photograph = decode_image(path)
    left, top = ((side - SIDE_PX) // 2 for side in photograph.size)
    image = np.asarray(photograph.crop((left, top, left + SIDE_PX, top + SIDE_PX)))
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    return image, np.asarray(draw_hole(hole, rng, SIDE_PX)) > 0


def fill(policy: Policy, image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Returns the painted photograph, uint8 [S, S, 3]."""
    (done,) = paint(policy, to_canvas(image, hole), num_inference_steps=STEPS, seed_key=("picture",))
    return done.rgb


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="pictures", description=__doc__)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    base, aligned = load_policy(ModelConfig()), load_policy(ModelConfig(), options.policy)
    rows = []
    for number, path in enumerate(list_photographs(HELD_OUT)[:ROWS]):
        image, hole = masked_photograph(path, HOLES[number % len(HOLES)])
        masked = np.where(hole[..., None], 255, image).astype(np.uint8)
        tiles = [masked, fill(base, image, hole), fill(aligned, image, hole), image]
        rows.append(
            np.concatenate([np.pad(t, ((0, GAP_PX), (0, GAP_PX), (0, 0)), constant_values=255) for t in tiles], 1)
        )
    Image.fromarray(np.concatenate(rows)[:-GAP_PX, :-GAP_PX]).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
