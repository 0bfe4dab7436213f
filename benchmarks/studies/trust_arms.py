"""Runs alignments that differ in one setting only, from identical starts, paired by seed, to test whether trust pays.

OUT/prompts, held_out_prompts, candidates     of all arms
OUT/seed-0/annotations, reward                the few annotated prompts, the annotators' noise and the reward of a seed
OUT/seed-0/proper/align, evaluation           one arm: an alignment, and every policy it saved under both judges

Every stage is a command of `rlhf` that runs once, so an interrupted study resumes arm by arm.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.config_files import dump_config
from rlhf.config.run_config import RunConfig
from rlhf.storage.atomic_files import atomic_write_text
from rlhf.workflows.stages import Stage, read_stages, run_stages

CONTROL = "none"
"""Arm with which all others are compared."""
ARMS = {
    "none": (),
    "proper": ("align.trust=proper",),
    "release": ("align.trust=release",),
    "lower": ("align.climbs=lower_bound",),
    "prefpaint": ("align.algorithm=prefpaint",),
    "all": ("align.log_prob_over=all",),
    "constant": ("align.trust=constant",),
}
"""Arms by name, with their settings besides `align.trust=none`."""
MAIN = ("none", "proper")
"""Arms with the most seeds."""
RESTS_ON = {
    "prompts": ("prompts",),
    "held-out prompts": ("prompts",),
    "candidates": ("prompts", "model", "candidates"),
    "annotations": ("prompts", "model", "candidates", "annotators"),
    "reward": ("prompts", "model", "candidates", "annotators", "reward"),
    "align": ("prompts", "model", "candidates", "annotators", "reward", "rewards", "align", "cluster"),
    "evaluate": ("prompts", "model", "candidates", "annotators", "reward", "rewards", "align", "evaluate"),
}
"""Sections of the configuration that a stage depends on, including those of earlier folders."""


@dataclass(frozen=True, kw_only=True)
class TrustPlan:
    """Size of the study."""

    images: Path
    """Photographs to train on."""
    eval_images: Path
    """Photographs to judge on."""
    seeds: int = 5
    """Number of seeds of `none` and `proper`."""
    other_seeds: int = 3
    """Number of seeds of the other arms; `constant` has one."""
    annotated: int = 360
    """Number of candidates that the annotators of each seed mark, in whole prompts."""


def queue(seeds: int, other_seeds: int) -> list[tuple[int, str]]:
    """Returns seed and arm of every run: the main comparison first, then seed by seed; `constant` once, last."""
    main = [(seed, arm) for seed in range(seeds) for arm in MAIN]
    others = [arm for arm in ARMS if arm not in (*MAIN, "constant")]
    return main + [(seed, arm) for seed in range(other_seeds) for arm in others] + [(0, "constant")]


def arm_folder(out: Path, seed: int, arm: str) -> Path:
    """Returns the folder of an arm and seed."""
    return out / f"seed-{seed}" / arm


def is_finished(folder: Path) -> bool:
    """Whether an arm has been judged."""
    return "evaluate" in read_stages(folder)


def run_trust_study(plan: TrustPlan, config: RunConfig, out: Path) -> None:
    """Runs or resumes all arms; finished stages are skipped.

    Raises UserError if settings have changed on which a started alignment depends, and SystemExit if a stage that all
    arms of a seed share fails, or two arms in a row fail.
    """
    file = out / "config.yaml"
    atomic_write_text(file, dump_config(config))
    runs = queue(plan.seeds, plan.other_seeds)
    begun = [arm_folder(out, seed, arm) / "align" for seed, arm in runs]
    run_stages(out, _shared_stages(plan, config, out, file), program="trust study", later_runs=begun)
    # All rewards first: one that cannot be fitted shows before hours have passed.
    for seed in sorted({seed for seed, _ in runs}):
        folder, own = out / f"seed-{seed}", [arm_folder(out, s, arm) / "align" for s, arm in runs if s == seed]
        run_stages(folder, _seed_stages(plan, config, out, file, seed), program=f"study, seed {seed}", later_runs=own)
    failed: list[str] = []
    for number, (seed, arm) in enumerate(runs, start=1):
        print(f"trust study: run {number} of {len(runs)}: {arm}, seed {seed}", file=sys.stderr)
        stages = _arm_stages(config, out, file, seed, arm)
        try:
            run_stages(arm_folder(out, seed, arm), stages, program=f"study, {arm}, seed {seed}")
        except SystemExit:
            # One diverging arm must not end the study; two failures in a row have another cause.
            if failed[-1:] == [f"run {number - 1}"]:
                raise
            failed.append(f"run {number}")
    if failed:
        print(f"trust study: failed: {', '.join(failed)}; the same command tries again", file=sys.stderr)


def _stage(name: str, words: Sequence[object], config: RunConfig, file: Path, changes: Sequence[str] = ()) -> Stage:
    resolved = config.model_dump(mode="json")
    options = ["--config", str(file), *(word for change in changes for word in ("--set", change))]
    return Stage(
        name=name,
        arguments=[*map(str, words), *options],
        settings={section: resolved[section] for section in ("seed", *RESTS_ON[name])},
        run=Path(str(words[-1])) if name == "align" else None,
        renewal=("--overwrite",) if name == "candidates" else (),
    )


def _shared_stages(plan: TrustPlan, config: RunConfig, out: Path, file: Path) -> list[Stage]:
    prompts, held_out = out / "prompts", out / "held_out_prompts"
    commands = [
        ("prompts", ["prompts", "--images", plan.images, "--split", "train", "--out", prompts]),
        ("held-out prompts", ["prompts", "--images", plan.eval_images, "--split", "test", "--out", held_out]),
        ("candidates", ["candidates", "--prompts", prompts, "--out", out / "candidates"]),
    ]
    return [_stage(name, words, config, file) for name, words in commands]


def _seed_stages(plan: TrustPlan, config: RunConfig, out: Path, file: Path, seed: int) -> list[Stage]:
    prompts, candidates, folder = out / "prompts", out / "candidates", out / f"seed-{seed}"
    marked = folder / "annotations"
    annotate = ["annotate", candidates, "--simulated", "--limit", plan.annotated, "--prompts", prompts, "--out", marked]
    reward = ["reward", prompts, candidates, marked, "--out", folder / "reward"]
    changes = [f"seed={seed}"]
    return [_stage("annotations", annotate, config, file, changes), _stage("reward", reward, config, file, changes)]


def _arm_stages(config: RunConfig, out: Path, file: Path, seed: int, arm: str) -> list[Stage]:
    folder, reward = arm_folder(out, seed, arm), out / f"seed-{seed}" / "reward"
    run, judged = folder / "align", folder / "evaluation"
    align = ["align", "--prompts", out / "prompts", "--reward", reward, "--out", run]
    held_out = ["--prompts", out / "held_out_prompts", "--reward", reward]
    changes = [f"seed={seed}", "align.trust=none", *ARMS[arm]]
    return [
        _stage("align", align, config, file, changes),
        _stage("evaluate", ["evaluate", *held_out, "--run", run, "--out", judged], config, file, changes),
    ]
