"""Runs the demo: all stages in order, each as the command a user would type, then the report."""

import sys
import time
from pathlib import Path

from rlhf.config.config_files import find_run_file, load_config
from rlhf.config.reward_config import LITE0
from rlhf.data.networks.package_weights import EFFICIENTNET_LITE0
from rlhf.data.photographs import choose_photograph_folders
from rlhf.workflows.stages import Stage, run_stages

SECTIONS = {
    "prompts": ("prompts",),
    "held-out prompts": ("prompts",),
    "candidates": ("model", "candidates"),
    "annotations": ("annotators",),
    "reward": ("reward",),
    "align": ("model", "rewards", "align", "cluster"),
    "evaluate": ("model", "evaluate"),
}
"""Sections of the configuration that a stage depends on; a change outdates the stage and all later ones."""
CROPS_PER_PHOTOGRAPH = 10
"""Number of prompts per photograph if the package's own photographs are used."""


def run_demo(
    out: Path, images: Path | None, eval_images: Path | None, config: Path | None, overrides: tuple[str, ...]
) -> None:
    """Runs or resumes the demo in `out`; finished stages that have not changed are skipped.

    Raises UserError if only one of the two photograph folders is given, or `out` is not writable.
    """
    started = time.perf_counter()
    file = config or find_run_file("demo")
    is_own = images is not None
    images, eval_images = choose_photograph_folders("demo", images, eval_images)
    if not is_own:
        overrides = (*overrides, f"prompts.crops_per_photograph={CROPS_PER_PHOTOGRAPH}")
    resolved = load_config(file, overrides).model_dump(mode="json")
    if resolved["reward"]["backbone"] == LITE0:
        EFFICIENTNET_LITE0.locate()
    options = ["--config", str(file), *(word for override in overrides for word in ("--set", override))]
    print(f"demo: 7 stages into {out}; some 15 minutes on 2 cores", file=sys.stderr)
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
    """Returns the name and the `rlhf` arguments of every stage, in order."""
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
            [
                *("evaluate", "--prompts", held_out, "--reward", reward, "--run", align),
                *("--contestant", "biharmonic=biharmonic", "--out", str(out / "evaluation")),
            ],
        ),
    ]
