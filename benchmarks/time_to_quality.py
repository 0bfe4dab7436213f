"""Measures the cost of each algorithm to reach a quality: `python -m benchmarks.time_to_quality --prompts P ...`.

Every seed and arm is an alignment, followed by `rlhf evaluate` over all policies that it saved. The costs are updates,
images, images through the UNet, and seconds. They are counted until one of three criteria is met, interpolated linearly
between saved policies:

- the WinRate over the base model, by the simulated gold judge, reaches the target, and no later policy is below it;
- it reaches the target for the first time, which an unstable policy may do by chance;
- the mean gold mark equals the best one of the reference.

If an alignment never meets the criterion, its total cost is a lower bound. Compare seconds only if nothing else ran on
the machine. Every stage runs once, so the same command resumes an interrupted benchmark.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.paired_statistics import estimate_paired
from benchmarks.studies.trust_curves import updates_to_reach
from benchmarks.time_to_quality_records import (
    ArmCurve,
    ArmSpent,
    Bound,
    CostRatios,
    JudgedCurve,
    JudgedPolicy,
    Reached,
    Spent,
    TimeToQuality,
)
from rlhf.config.config_files import find_run_file, load_config
from rlhf.config.run_config import RunConfig
from rlhf.reports.metrics_log import Metrics, read_metrics
from rlhf.reports.records import read_record
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.workflows.stages import Stage, read_stages, run_stages

REFERENCE = "prefpaint"
ARMS = ("grpo", "mixgrpo", "nft", REFERENCE)
FORWARD = ("sampler_forward_images", "learner_forward_images", "base_forward_images")
COSTS = ("updates", "images", "forward", "backward", "weighted", "seconds")
"""`weighted` counts a backward pass as two forward passes."""
GOOD, FIRST, BEST = "for good", "for the first time", "the reference's best gold mark"
CRITERIA = (GOOD, FIRST, BEST)
RESTS_ON = {"align": ("seed", "model", "rewards", "align", "cluster"), "evaluate": ("seed", "model", "evaluate")}
"""Sections of the configuration on which a stage depends."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An algorithm with further settings."""

    algorithm: str
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its folder."""
        return ",".join((self.algorithm, *self.changes)).replace("/", "_")


def find_reached(versions: np.ndarray, values: np.ndarray, target: float, criterion: str) -> float | None:
    """Returns the updates until the target is reached, for good or for the first time; None if it is not."""
    below = np.flatnonzero(values < target)
    since = below[-1] if criterion == GOOD and len(below) else 0
    return updates_to_reach(versions[since:], values[since:], target)


def measure_arm(
    versions: Sequence[int] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    lines: Sequence[Metrics],
    images: int,
    target: float,
    criterion: str,
) -> Spent:
    """Returns the costs until `values`, those of the policies `versions`, reach the target by one of CRITERIA.

    `lines` are those of `metrics.jsonl`, one per update; `images` were sampled in each.
    """
    reached = find_reached(np.asarray(versions), np.asarray(values), target, criterion)
    updates = float(len(lines)) if reached is None else reached
    per_update = {
        "forward": [sum(line[name] for name in FORWARD) for line in lines],
        "backward": [line["backward_images"] for line in lines],
        "seconds": [line["update_s"] for line in lines],
    }
    totals = {name: np.concatenate([[0.0], np.cumsum(values)]) for name, values in per_update.items()}
    costs = {name: float(np.interp(updates, np.arange(len(lines) + 1), total)) for name, total in totals.items()}
    costs |= {"updates": updates, "images": updates * images, "weighted": costs["forward"] + 2 * costs["backward"]}
    return Spent(is_reached=reached is not None, costs={n: costs[n] for n in COSTS}, best=float(max(values)))


def compare(spent: Mapping[tuple[str, int], Spent], reference: str = REFERENCE) -> list[CostRatios]:
    """Returns the ratios of each arm over the seeds that it shares with the reference."""
    rows = []
    for arm in sorted({name for name, _ in spent}):
        seeds = sorted(s for name, s in spent if name == arm and (reference, s) in spent)
        pairs = [(spent[arm, s], spent[reference, s]) for s in seeds]
        if arm == reference or not pairs:
            continue
        is_known = all(ours.is_reached for ours, _ in pairs)
        is_exact = all(theirs.is_reached for _, theirs in pairs)
        ratios = {}
        for cost in COSTS if is_known else ():
            estimate = estimate_paired([math.log(a.costs[cost] / b.costs[cost]) for a, b in pairs])
            figures = (estimate.value, estimate.low, estimate.high)
            ratios[cost] = [None if f is None else math.exp(f) for f in figures]
        bound: Bound = "none" if not is_known else "" if is_exact else "at most"
        rows.append(CostRatios(arm=arm, seeds=seeds, bound=bound, ratios=ratios))
    return rows


def run(arguments: argparse.Namespace, arms: Sequence[Arm]) -> None:
    """Runs the unfinished stages, seed by seed; if an arm fails, the others still run."""
    failed = []
    for seed in range(arguments.seeds):
        for arm in arms:
            folder = arguments.out / f"seed-{seed}" / arm.name
            try:
                run_stages(folder, stages_of(arguments, arm, seed), program=f"time to quality, {arm.name}, seed {seed}")
            except SystemExit:
                failed.append(f"{arm.name}, seed {seed}")
    if failed:
        print(f"time to quality: failed: {'; '.join(failed)}; the same command tries again", file=sys.stderr)


def stages_of(arguments: argparse.Namespace, arm: Arm, seed: int) -> list[Stage]:
    """Returns the alignment and the evaluation of an arm."""
    folder, changes = arguments.out / f"seed-{seed}" / arm.name, changes_of(arguments, arm, seed)
    config = load_config(arguments.config, changes).model_dump(mode="json")
    align = ["align", "--prompts", arguments.prompts, "--reward", arguments.reward, "--out", folder / "align"]
    judge = ["evaluate", "--prompts", arguments.held_out, "--split", arguments.split, "--reward", arguments.reward]
    judge += ["--run", folder / "align", "--out", folder / "evaluation"]
    return [_stage(words, arguments.config, changes, config, folder / "align") for words in (align, judge)]


def _stage(
    words: Sequence[object], file: Path, changes: Sequence[str], config: Mapping[str, Any], run_folder: Path
) -> Stage:
    """Returns a command with the changes that it depends on, so that other changes do not outdate it."""
    name = str(words[0])
    own = [change for change in changes if change.partition("=")[0].partition(".")[0] in RESTS_ON[name]]
    options = ["--config", str(file), *(word for change in own for word in ("--set", change))]
    return Stage(
        name=name,
        arguments=[*map(str, words), *options],
        settings={section: config[section] for section in RESTS_ON[name]},
        run=run_folder if name == "align" else None,
    )


def changes_of(arguments: argparse.Namespace, arm: Arm, seed: int) -> tuple[str, ...]:
    """Returns the values of `--set` for an arm: common ones first, then its own."""
    return (f"seed={seed}", f"align.algorithm={arm.algorithm}", *arguments.set, *arm.changes)


def summarise(arguments: argparse.Namespace, arms: Sequence[Arm]) -> TimeToQuality:
    """Returns the costs of the finished arms, and their ratios to the reference."""
    spent: dict[str, dict[tuple[str, int], Spent]] = {criterion: {} for criterion in CRITERIA}
    missing, curves = [], []
    reference = next((arm.name for arm in arms if arm.algorithm == REFERENCE), REFERENCE)
    best_gold = find_best_gold(arguments, reference)
    for seed in range(arguments.seeds):
        for arm in arms:
            folder = arguments.out / f"seed-{seed}" / arm.name
            if "evaluate" not in read_stages(folder):
                missing.append(f"{arm.name}, seed {seed}")
                continue
            config: RunConfig = load_config(arguments.config, changes_of(arguments, arm, seed))
            curve = read_curve(folder)
            versions, rates, gold = (np.array(column) for column in zip(*curve_of(curve), strict=True))
            images = config.align.prompts_per_update * config.align.samples_per_prompt
            measure = partial(measure_arm, versions, lines=read_metrics(folder / "align"), images=images)
            for criterion in (GOOD, FIRST):
                spent[criterion][arm.name, seed] = measure(rates, target=arguments.target, criterion=criterion)
            if seed in best_gold:
                spent[BEST][arm.name, seed] = measure(gold, target=best_gold[seed], criterion=BEST)
            curves.append(ArmCurve(arm=arm.name, seed=seed, policies=curve_of(curve)))
    return TimeToQuality(
        target_win_rate=arguments.target,
        reached={
            criterion: Reached(
                spent=[ArmSpent(arm=arm, seed=seed, **vars(figures)) for (arm, seed), figures in own.items()],
                ratios=compare(own, reference),
            )
            for criterion, own in spent.items()
        },
        curves=curves,
        missing=missing,
    )


def find_best_gold(arguments: argparse.Namespace, reference: str) -> dict[int, float]:
    """Returns the highest mean gold mark of the reference's policies, by seed."""
    folders = {seed: arguments.out / f"seed-{seed}" / reference for seed in range(arguments.seeds)}
    done = {seed: folder for seed, folder in folders.items() if "evaluate" in read_stages(folder)}
    return {seed: max(gold for _, _, gold in curve_of(read_curve(folder))) for seed, folder in done.items()}


def read_curve(folder: Path) -> list[JudgedPolicy]:
    """Returns the judgements of an arm's saved policies."""
    return read_record(JudgedCurve, folder / "evaluation" / "summary.json", "run the same command again").curve


def curve_of(points: Sequence[JudgedPolicy]) -> list[list[float]]:
    """Returns updates, WinRate and mean gold mark of each saved policy."""
    return [[point.policy_version, round(point.win_rate.value, 4), point.gold] for point in points]


def format_table(summary: TimeToQuality) -> str:
    """Formats, for each criterion, a line per alignment and then one per ratio to REFERENCE."""
    lines = []
    for criterion, found in summary.reached.items():
        aim = f"a WinRate of {summary.target_win_rate:.0%} by the simulated gold judge, {criterion}"
        lines += [f"to {criterion if criterion == BEST else aim}; > where it was not reached"]
        lines += _format_reached(found)
    lines += [f"missing: {'; '.join(summary.missing)}"] if summary.missing else []
    return "\n".join(lines)


def _format_reached(found: Reached) -> list[str]:
    names = [entry.arm for entry in found.spent]
    width = max(map(len, ("arm", *names)))
    lines = [f"{'arm':<{width}} {'seed':>4} " + " ".join(f"{cost:>11}" for cost in COSTS) + "       best"]
    for entry in found.spent:
        sign = "" if entry.is_reached else ">"
        costs = " ".join(f"{sign + format(entry.costs[cost], ',.1f'):>11}" for cost in COSTS)
        lines.append(f"{entry.arm:<{width}} {entry.seed:>4} {costs}  {entry.best:>10.4f}")
    for row in found.ratios:
        label = f"{row.arm} / {REFERENCE}, {len(row.seeds)} seeds"
        if row.bound == "none":
            lines.append(f"{label}: the target is not reached in all of them")
            continue
        for cost, (value, low, high) in row.ratios.items():
            interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
            lines.append(f"{label}: {cost} {row.bound} {value:.2f}{interval}".replace("  ", " "))
    return lines


def parse_arm(text: str) -> Arm:
    """Parses an arm such as `nft,align.learning_rate=1e-4`: an algorithm with further settings."""
    algorithm, *changes = text.split(",")
    if algorithm not in ARMS:
        raise argparse.ArgumentTypeError(f"{algorithm!r} is none of {', '.join(ARMS)}")
    return Arm(algorithm=algorithm, changes=tuple(changes))


def main() -> None:
    """Runs the missing stages, then reports all finished ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--prompts", "--held-out", "--reward", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--split", default="test", help="split of the held-out prompts")
    parser.add_argument("--arm", type=parse_arm, action="append", help="ALGORITHM[,KEY=VALUE...]; default: all four")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.6, help="WinRate over the base model")
    parser.add_argument("--config", type=Path, help="run configuration; default: that of the demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting of all arms")
    parser.add_argument("--report", action="store_true", help="only report; run nothing")
    arguments = parser.parse_args()
    arguments.config = arguments.config or find_run_file("demo")
    arms = arguments.arm or [Arm(algorithm=name) for name in ARMS]
    if not arguments.report:
        run(arguments, arms)
    summary = summarise(arguments, arms)
    atomic_write_json(arguments.out / "time_to_quality.json", asdict(summary))
    print(format_table(summary))


if __name__ == "__main__":
    main()
