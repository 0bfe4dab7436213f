"""Does trust pay? Alignments that differ in one setting alone, from identical starts, paired by seed.

OUT/prompts, held_out_prompts, candidates     of all arms
OUT/seed-0/annotations, reward                the few annotated prompts, the annotators' noise and the reward of a seed
OUT/seed-0/proper/align, evaluation           one arm: an alignment, and every policy it saved under both judges

Every stage is a command of `rlhf` that is run once, so the study goes on arm by arm wherever it was interrupted.
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
"""The arm that all others are compared with."""
ARMS = {
    "none": (),
    "proper": ("align.trust=proper",),
    "release": ("align.trust=release",),
    "lower": ("align.climbs=lower_bound",),
    "prefpaint": ("align.algorithm=prefpaint",),
    "all": ("align.log_prob_over=all",),
    "constant": ("align.trust=constant",),
}
"""Arms by name, and what each sets besides `align.trust=none`."""
MAIN = ("none", "proper")
"""The arms with the most seeds."""
RESTS_ON = {
    "prompts": ("prompts",),
    "held-out prompts": ("prompts",),
    "candidates": ("prompts", "model", "candidates"),
    "annotations": ("prompts", "model", "candidates", "annotators"),
    "reward": ("prompts", "model", "candidates", "annotators", "reward"),
    "align": ("prompts", "model", "candidates", "annotators", "reward", "rewards", "align", "cluster"),
    "evaluate": ("prompts", "model", "candidates", "annotators", "reward", "rewards", "align", "evaluate"),
}
"""Sections of the configuration that a stage rests on, those of earlier folders included."""


@dataclass(frozen=True, kw_only=True)
class TrustPlan:
    """What is run, and how much of it."""

    images: Path
    """Photographs to train on."""
    eval_images: Path
    """Photographs to judge on."""
    seeds: int = 5
    """Of `none` and `proper`."""
    other_seeds: int = 3
    """Of the other arms; `constant` has one."""
    annotated: int = 360
    """Candidates that each seed's annotators mark, in whole prompts."""


def queue(seeds: int, other_seeds: int) -> list[tuple[int, str]]:
    """Seed and arm of every run: the comparison that matters most first, then seed by seed; `constant` once, last."""
    main = [(seed, arm) for seed in range(seeds) for arm in MAIN]
    others = [arm for arm in ARMS if arm not in (*MAIN, "constant")]
    return main + [(seed, arm) for seed in range(other_seeds) for arm in others] + [(0, "constant")]


def arm_folder(out: Path, seed: int, arm: str) -> Path:
    """Where an arm of a seed lies."""
    return out / f"seed-{seed}" / arm


def is_finished(folder: Path) -> bool:
    """Whether an arm has been judged."""
    return "evaluate" in read_stages(folder)


def run_trust_study(plan: TrustPlan, config: RunConfig, out: Path) -> None:
    """Run or finish all arms; what is done is not done twice.

    Raises UserError where settings have changed on which a begun alignment rests, SystemExit where a stage that all
    arms of a seed rest on fails, or two arms in a row.
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
            # An arm that diverges must not cost the night; two in a row are no arm's own fault.
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
