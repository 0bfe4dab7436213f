"""All stages in a row, each as the command a user would type, with timings; then the report."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rlhf.config_files import load_config
from rlhf.errors import UserError
from rlhf.storage import atomic_write_json

PHOTOGRAPHS = (
    ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg"),
    ("brick.png", "grass.png", "gravel.png"),
    ("hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg"),
)
"""Photographs inside scikit-image by kind (things, surfaces, instruments' views); the first of each is held out."""
NEVER_TRAINED_ON = "motorcycle_left.png"
"""The left of a stereo pair, held out as well."""
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
    if (images is None) != (eval_images is None):
        raise UserError("demo: give both --images (to train on) and --eval-images (to judge on), or neither")
    started = time.perf_counter()
    file = config or find_run_file("demo")
    if images is None or eval_images is None:
        images, eval_images = lay_out_photographs(out / "photographs")
        overrides = (*overrides, f"prompts.crops_per_photograph={CROPS_OF_FEW}")
    resolved = load_config(file, overrides).model_dump(mode="json")
    options = ["--config", str(file), *(word for override in overrides for word in ("--set", override))]
    print(f"demo: 7 stages into {out}; about 9 minutes on 2 cores", file=sys.stderr)
    for stage, arguments in stage_commands(out, images, eval_images):
        settings = {name: resolved[name] for name in ("seed", *SECTIONS[stage])}
        _run_stage(out, stage, [*arguments, *options], settings)
    from rlhf.report import summarise, write_report

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
    for folder in (Path(__file__).parent / "runs", Path(__file__).parent.parent / "cluster" / "runs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UserError(f"no run configuration {name!r} in this installation; name one with --config")


def read_stages(out: Path) -> dict[str, dict]:
    """Finished stages by name: command and seconds."""
    path = out / "stages.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def lay_out_photographs(folder: Path) -> tuple[Path, Path]:
    """Copy scikit-image's photographs into `folder`; returns those to train on and those held out."""
    import skimage.data

    source = Path(skimage.data.__file__).parent
    train = [name for kind in PHOTOGRAPHS for name in kind[1:]]
    test = [*(kind[0] for kind in PHOTOGRAPHS), NEVER_TRAINED_ON]
    for split, names in (("train", train), ("test", test)):
        try:
            (folder / split).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(source / name, folder / split / name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    return folder / "train", folder / "test"


def _run_stage(out: Path, stage: str, arguments: list[str], settings: dict) -> None:
    stages = read_stages(out)
    command = shlex.join(["rlhf", *arguments])
    before = stages.get(stage, {})
    if (before.get("command"), before.get("settings")) == (command, settings):
        print(f"demo: {stage}: done before", file=sys.stderr)
        return
    if before and (out / "align" / "learner").exists():
        raise UserError(
            f"{out}: {stage} has changed, but align/ rests on it; remove {out / 'align'} or choose another --out"
        )
    if stage == "align" and (out / "align" / "learner").exists():
        arguments = [*arguments, "--resume"]
    started = time.perf_counter()
    print(f"demo: {command}", file=sys.stderr)
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
    code = subprocess.run([sys.executable, "-m", "rlhf", *arguments], env=environment, check=False).returncode
    if code != 0:
        print(f"demo: stage {stage} failed; mend it and run the same command again to go on", file=sys.stderr)
        raise SystemExit(code)
    # A stage that was run anew outdates all that came after it.
    names = list(stages)
    kept = {n: stages[n] for n in names[: names.index(stage)]} if stage in stages else stages
    kept[stage] = {"command": command, "settings": settings, "duration_s": round(time.perf_counter() - started, 1)}
    atomic_write_json(out / "stages.json", kept)
