"""Photographs that workflows train and judge on: the user's folders, or scikit-image's few photographs."""

import shutil
from functools import partial
from pathlib import Path

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write

PHOTOGRAPHS = (
    ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg"),
    ("brick.png", "grass.png", "gravel.png"),
    ("hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg"),
)
"""scikit-image's photographs by kind (things, surfaces, views of instruments); the first of each is held out."""
NEVER_TRAINED_ON = ("motorcycle_left.png", "page.png", "text.png")
"""Held-out photographs of kinds that are not trained on, so that there are enough for an interval."""


def choose_photograph_folders(
    program: str, out: Path, images: Path | None, eval_images: Path | None
) -> tuple[Path, Path]:
    """Returns the folders to train and to judge on: the user's, or scikit-image's photographs copied into `out`.

    Raises UserError if only one folder is given.
    """
    if (images is None) != (eval_images is None):
        raise UserError(f"{program}: give both --images (to train on) and --eval-images (to judge on), or neither")
    if images is None or eval_images is None:
        return lay_out_photographs(out / "photographs")
    return images, eval_images


def lay_out_photographs(folder: Path) -> tuple[Path, Path]:
    """Copies scikit-image's photographs into `folder`; returns the folder to train on and the held-out one."""
    import skimage.data

    source = Path(skimage.data.__file__).parent
    train = [name for kind in PHOTOGRAPHS for name in kind[1:]]
    test = [*(kind[0] for kind in PHOTOGRAPHS), *NEVER_TRAINED_ON]
    for split, names in (("train", train), ("test", test)):
        for name in names:
            atomic_write(folder / split / name, partial(shutil.copyfile, source / name))
    return folder / "train", folder / "test"
