"""All stages in a row, each as the command a user would type, with timings; then the report."""

import shutil
import sys
import time
from functools import partial
from pathlib import Path

from rlhf.config.config_files import load_config
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write
from rlhf.workflows.stages import Stage, run_stages

PACKAGE = Path(__file__).parents[1]
PHOTOGRAPHS = (
    ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg"),
    ("brick.png", "grass.png", "gravel.png"),
    ("hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg"),
)
"""Photographs inside scikit-image by kind (things, surfaces, instruments' views); the first of each is held out."""
NEVER_TRAINED_ON = ("motorcycle_left.png", "page.png", "text.png")
"""Of kinds that none is trained on, so that enough are held out for an interval: a stereo pair's left, two writings."""
SECTIONS = {
    "prompts": ("prompts",),
    "held-out prompts": ("prompts",),
    "candidates": ("model", "candidates"),
    "annotations": ("annotators",),
    "reward": ("reward",),
    "align": ("model", "rewards", "align", "cluster"),
    "evaluate": ("model", "evaluate"),
}
"""Sections of the configuration that a stage rests on; a change there outdates it and all that follow."""
CROPS_OF_FEW = 24
"""Prompts per photograph where only scikit-image's few are at hand."""


def run_demo(
    out: Path, images: Path | None, eval_images: Path | None, config: Path | None, overrides: tuple[str, ...]
) -> None:
    """Run or finish the demo in `out`; a stage whose command has not changed is not run twice.

    Raises UserError where only one of the two photograph folders is given, or `out` is not writable.
    """
    started = time.perf_counter()
    file = config or find_run_file("demo")
    is_own = images is not None
    images, eval_images = choose_photographs("demo", out, images, eval_images)
    if not is_own:
        overrides = (*overrides, f"prompts.crops_per_photograph={CROPS_OF_FEW}")
    resolved = load_config(file, overrides).model_dump(mode="json")
    options = ["--config", str(file), *(word for override in overrides for word in ("--set", override))]
    print(f"demo: 7 stages into {out}; some 7 minutes on 2 cores", file=sys.stderr)
    stages = [
        Stage(
            name=name,
            arguments=[*arguments, *options],
            settings={section: resolved[section] for section in ("seed", *SECTIONS[name])},
            run=out / "align" if name == "align" else None,
            renewal=("--overwrite",) if name == "candidates" else (),
        )
        for name, arguments in stage_commands(out, images, eval_images)
    ]
    run_stages(out, stages, program="demo")
    from rlhf.workflows.run_report import summarise, write_report

    report = write_report(out)
    print("\n".join(summarise(out, report, time.perf_counter() - started)))


def stage_commands(out: Path, images: Path, eval_images: Path) -> list[tuple[str, list[str]]]:
    """Name and `rlhf` arguments of every stage, in order."""
    prompts, candidates, annotations = str(out / "prompts"), str(out / "candidates"), str(out / "annotations")
    held_out, reward, align = str(out / "held_out_prompts"), str(out / "reward"), str(out / "align")
    return [
        ("prompts", ["prompts", "--images", str(images), "--split", "train", "--out", prompts]),
        ("held-out prompts", ["prompts", "--images", str(eval_images), "--split", "test", "--out", held_out]),
        ("candidates", ["candidates", "--prompts", prompts, "--out", candidates]),
        ("annotations", ["annotate", candidates, "--simulated", "--prompts", prompts, "--out", annotations]),
        ("reward", ["reward", prompts, candidates, annotations, "--out", reward]),
        ("align", ["align", "--prompts", prompts, "--reward", reward, "--out", align]),
        (
            "evaluate",
            ["evaluate", "--prompts", held_out, "--reward", reward, "--run", align, "--out", str(out / "evaluation")],
        ),
    ]


def find_run_file(name: str) -> Path:
    """A run configuration that ships with the package, or lies in `cluster/runs` of a checkout."""
    for folder in (PACKAGE / "runs", PACKAGE.parent / "cluster" / "runs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UserError(f"no run configuration {name!r} in this installation; name one with --config")


def choose_photographs(program: str, out: Path, images: Path | None, eval_images: Path | None) -> tuple[Path, Path]:
    """Folders to train on and to judge on: the user's, or scikit-image's photographs, laid out in `out`.

    Raises UserError where only one is given.
    """
    if (images is None) != (eval_images is None):
        raise UserError(f"{program}: give both --images (to train on) and --eval-images (to judge on), or neither")
    if images is None or eval_images is None:
        return lay_out_photographs(out / "photographs")
    return images, eval_images


def lay_out_photographs(folder: Path) -> tuple[Path, Path]:
    """Copy scikit-image's photographs into `folder`; returns those to train on and those held out."""
    import skimage.data

    source = Path(skimage.data.__file__).parent
    train = [name for kind in PHOTOGRAPHS for name in kind[1:]]
    test = [*(kind[0] for kind in PHOTOGRAPHS), *NEVER_TRAINED_ON]
    for split, names in (("train", train), ("test", test)):
        for name in names:
            atomic_write(folder / split / name, partial(shutil.copyfile, source / name))
    return folder / "train", folder / "test"
