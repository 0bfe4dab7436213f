"""Measures how fast prompts are read in random order, from our Parquet table and from a folder of PNG files."""

import random
import tempfile
from pathlib import Path

from benchmarks.measure import Figures, interleave, spread
from rlhf.data.prompts import PromptTable, decode_prompt
from rlhf.storage.images import decode_image, decode_mask, image_to_tensor, mask_to_tensor

READ_AT_ONCE = 16


def measure(run: Path, rounds: int) -> Figures:
    """Measures decoded prompts per second; row groups are read as a coordinator reads them."""
    table = PromptTable(run / "prompts", split="train")
    ids = random.Random(0).sample(table.ids, len(table.ids))
    with tempfile.TemporaryDirectory() as folder:
        for row in table.rows(ids):
            for column in ("image", "mask"):
                (Path(folder) / f"{row['prompt_id']}_{column}.png").write_bytes(row[column]["bytes"])

        def from_parquet() -> None:
            for first in range(0, len(ids), READ_AT_ONCE):
                for row in table.rows(ids[first : first + READ_AT_ONCE]):
                    decode_prompt(row)

        def from_files() -> None:
            for name in ids:
                image = decode_image(Path(folder) / f"{name}_image.png")
                mask = decode_mask((Path(folder) / f"{name}_mask.png").read_bytes(), size=image.size, name=name)
                image_to_tensor(image), mask_to_tensor(mask)

        seconds = interleave({"Parquet": from_parquet, "PNG files": from_files}, rounds)
    return {"prompts_per_s": {name: spread([len(ids) / s for s in found]) for name, found in seconds.items()}}
