"""The demo's photographs, and what each photograph that is no training data of the base models serves.

`SOURCES.tsv` has a row per photograph: file, purpose, author, licence, source. Those of the demo lie beside it, with a
short side of 320 px, recompressed. Photographs of the other purposes are not in the package.

They were chosen by a rule: a licence of Creative Commons; at 320 px, at least 65 % of the blocks of 16 px deviate by
more than .03 in luminance; mean colourfulness above .06, mean luminance .2 to .75, under 10 % of the pixels clipped; no
painting and no pattern. Within a purpose they lie at equal distances by name.
"""

import csv
from pathlib import Path
from typing import Literal

from rlhf.errors import UserError

FOLDER = Path(__file__).parent
TO_LEARN_FROM, HELD_OUT = FOLDER / "train", FOLDER / "held_out"

Purpose = Literal["demo: learned from", "demo: held out", "annotators", "judge"]
"""A photograph has one. `annotators` and `judge` train the probes of simulated annotators and of the held-out judge."""


def choose_photograph_folders(program: str, images: Path | None, eval_images: Path | None) -> tuple[Path, Path]:
    """Returns the folders to train and to judge on: the user's, or those of the demo's photographs.

    Raises UserError if only one folder is given.
    """
    if (images is None) != (eval_images is None):
        raise UserError(f"{program}: give both --images (to train on) and --eval-images (to judge on), or neither")
    return images or TO_LEARN_FROM, eval_images or HELD_OUT


def photographs_of(purpose: Purpose) -> list[str]:
    """Returns the file names of the photographs that serve this purpose, sorted."""
    return sorted(name for name, serves in _purposes() if serves == purpose)


def set_aside() -> frozenset[str]:
    """Returns the file names of all photographs with a purpose; no base model is trained on them."""
    return frozenset(name for name, _ in _purposes())


def _purposes() -> list[tuple[str, str]]:
    with (FOLDER / "SOURCES.tsv").open(encoding="utf-8", newline="") as lines:
        return [(row["file"], row["serves"]) for row in csv.DictReader(lines, delimiter="\t")]
