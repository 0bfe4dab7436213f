"""Annotate, learn the reward, align, judge; again with the aligned policy's own candidates. Every stage a command."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.config_files import load_config
from rlhf.config.run_config import RunConfig
from rlhf.reports.intervals import show_estimate
from rlhf.storage.atomic_files import atomic_write_json, read_json
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, read_table, stream_table, write_table
from rlhf.workflows.demo import find_run_file
from rlhf.workflows.stages import Stage, run_stages


@dataclass(frozen=True, kw_only=True)
class RoundsPlan:
    """What the command line says of all rounds."""

    out: Path
    rounds: int
    annotations_per_round: int
    """Candidates annotated in a round, in whole prompts."""
    select: str
    """`uncertain` or `random`; the first round, which has no reward yet, is random."""
    people: bool
    """People annotate, on the page; else simulated annotators do."""
    config: RunConfig
    options: tuple[str, ...]
    """--config and --set, as every stage gets them."""

    def folder(self, number: int) -> Path:
        """Of a round, from 1."""
        return self.out / f"round-{number}"

    def policy(self, number: int) -> Path | None:
        """That a round has aligned; None for the base model, which is that of round 0."""
        return self.folder(number) / "align" / f"policy-{self.config.align.updates:06d}" if number else None

    def settings(self, *sections: str) -> dict[str, Any]:
        """Resolved settings that a stage rests on."""
        resolved = self.config.model_dump(mode="json")
        return {name: resolved[name] for name in ("seed", *sections)}


def run_rounds(
    out: Path,
    images: Path,
    eval_images: Path,
    *,
    rounds: int,
    annotations_per_round: int,
    select: str = "uncertain",
    people: bool = False,
    config: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """Run or finish all rounds; returns the lines of `out/rounds.json`, one per finished round.

    Where people annotate it ends, with the command of their page, at a round that has no annotations
    yet; the same call then goes on. Raises UserError and SystemExit as `run_stages` does.
    """
    file = config or find_run_file("demo")
    plan = RoundsPlan(
        out=out,
        rounds=rounds,
        annotations_per_round=annotations_per_round,
        select=select,
        people=people,
        config=load_config(file, overrides),
        options=("--config", str(file), *(word for override in overrides for word in ("--set", override))),
    )
    _run(plan, prompt_stages(plan, images, eval_images), 1)
    lines: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        if not _run_round(plan, number):
            break
        lines.append(summarise_round(plan, number))
        atomic_write_json(plan.out / "rounds.json", lines)
        print(describe_round(lines[-1]))
    return lines


def _run_round(plan: RoundsPlan, number: int) -> bool:
    """False where it waits for people."""
    _run(plan, candidate_stages(plan, number), number)
    if plan.people and not (plan.folder(number) / "annotations" / "annotations.parquet").is_file():
        print(f"round {number}: let people annotate, then run the same command again to go on:")
        print(f"    {shlex.join(['rlhf', *annotate_arguments(plan, number)])}")
        return False
    if plan.config.rounds.refit:
        collect_annotated(plan, number)
    _run(plan, learning_stages(plan, number), number)
    return True


def _run(plan: RoundsPlan, stages: list[Stage], number: int) -> None:
    own = [stage.run for stage in stages if stage.run is not None]
    runs = [plan.folder(n) / "align" for n in range(number, plan.rounds + 1)]
    run_stages(plan.out, stages, program="rounds", later_runs=[run for run in runs if run not in own])


def prompt_stages(plan: RoundsPlan, images: Path, eval_images: Path) -> list[Stage]:
    """Prompts to train on and prompts held out."""
    return [
        Stage(
            name=name,
            arguments=["prompts", "--images", str(folder), "--split", split, "--out", str(out), *plan.options],
            settings=plan.settings("prompts"),
        )
        for name, folder, split, out in (
            ("prompts", images, "train", plan.out / "prompts"),
            ("held-out prompts", eval_images, "test", plan.out / "held_out_prompts"),
        )
    ]


def candidate_stages(plan: RoundsPlan, number: int) -> list[Stage]:
    """The policy's candidates for all prompts, and simulated annotations of some.

    Candidates are numbered on from the last round's: their noise is new, and both can lie in one table.
    """
    first = (number - 1) * plan.config.candidates.samples_per_prompt
    policy = plan.policy(number - 1)
    words = ["candidates", "--prompts", str(plan.out / "prompts"), "--out", str(plan.folder(number) / "candidates")]
    words += ["--first-sample", str(first), *(["--policy", str(policy)] if policy else [])]
    settings = plan.settings("model", "candidates")
    stages = [
        Stage(
            name=f"round {number}: candidates",
            arguments=[*words, *plan.options],
            settings=settings,
            renewal=("--overwrite",),
        )
    ]
    if not plan.people:
        words = [*annotate_arguments(plan, number), "--simulated"]
        stages.append(Stage(name=f"round {number}: annotations", arguments=words, settings=plan.settings("annotators")))
    return stages


def annotate_arguments(plan: RoundsPlan, number: int) -> list[str]:
    """Of `rlhf annotate`: the chosen prompts of a round; those of earlier rounds only where no others are left."""
    folder = plan.folder(number)
    words = ["annotate", str(folder / "candidates"), "--out", str(folder / "annotations")]
    words += ["--limit", str(plan.annotations_per_round)]
    if plan.select == "uncertain" and number > 1:
        words += ["--select", "uncertain", "--reward", str(plan.folder(number - 1) / "reward")]
    for n in range(1, number):
        words += ["--earlier", str(plan.folder(n) / "annotations")]
    return [*words, *plan.options]


def learning_stages(plan: RoundsPlan, number: int) -> list[Stage]:
    """The reward of all annotations so far, the alignment from the last round's policy, its judgement."""
    folder, prompts = plan.folder(number), str(plan.out / "prompts")
    reward, run = str(folder / "reward"), folder / "align"
    align = ["align", "--prompts", prompts, "--reward", reward, "--out", str(run), *plan.options]
    # The rollouts of each round have noise of their own.
    align += ["--set", f"seed={plan.config.seed + number - 1}"]
    start = plan.policy(number - 1)
    align += ["--policy", str(start)] if start else []
    held_out = str(plan.out / "held_out_prompts")
    evaluate = ["evaluate", "--prompts", held_out, "--reward", reward, "--run", str(run)]
    return [
        Stage(
            name=f"round {number}: reward",
            arguments=_reward_arguments(plan, number),
            settings=plan.settings("reward") | _annotated(plan, number),
        ),
        Stage(
            name=f"round {number}: align",
            arguments=align,
            settings=plan.settings("model", "rewards", "align", "cluster"),
            run=run,
        ),
        Stage(
            name=f"round {number}: evaluate",
            arguments=[*evaluate, "--out", str(folder / "evaluation"), *plan.options],
            settings=plan.settings("model", "evaluate"),
        ),
    ]


def _reward_arguments(plan: RoundsPlan, number: int) -> list[str]:
    folder, prompts = plan.folder(number), str(plan.out / "prompts")
    if plan.config.rounds.refit:
        source = folder / "annotated"
        words = ["reward", prompts, str(source / "candidates"), str(source / "annotations")]
        return [*words, "--out", str(folder / "reward"), *plan.options]
    words = ["reward", prompts, str(folder / "candidates"), str(folder / "annotations")]
    words += ["--out", str(folder / "reward")]
    if number == 1:
        return [*words, *plan.options]
    return [*words, "--update", str(plan.folder(number - 1) / "reward")]


def _annotated(plan: RoundsPlan, number: int) -> dict[str, int]:
    """How many annotations there are, so that more of them outdate a reward."""
    return {"annotations": len(read_table(plan.folder(number) / "annotations", ANNOTATIONS))}


def collect_annotated(plan: RoundsPlan, number: int) -> None:
    """Put the annotations of all rounds so far, and the candidates they are of, into one folder."""
    folders = [plan.folder(n) for n in range(1, number + 1)]
    rows = [row for folder in folders for row in read_table(folder / "annotations", ANNOTATIONS)]
    keys = {(row["prompt_id"], row["sample_index"]) for row in rows}

    def annotated() -> Iterator[dict[str, Any]]:
        for folder in folders:
            for row in stream_table(folder / "candidates", CANDIDATES):
                if (row["prompt_id"], row["sample_index"]) in keys:
                    yield row

    out = plan.folder(number) / "annotated"
    write_table(annotated(), CANDIDATES, out / "candidates" / "candidates.parquet")
    write_table(rows, ANNOTATIONS, out / "annotations" / "annotations.parquet")


def summarise_round(plan: RoundsPlan, number: int) -> dict[str, Any]:
    """What a finished round comes to: its line of `rounds.json`."""
    folder = plan.folder(number)
    judged = read_json(folder / "evaluation" / "summary.json", "remove evaluation/ to evaluate again")
    reward = read_json(folder / "reward" / "report.json", "remove reward/ to train it again")
    rows = read_table(folder / "annotations", ANNOTATIONS)
    return {
        "round": number,
        "select": plan.select if number > 1 else "random",
        "annotated_candidates": len({(row["prompt_id"], row["sample_index"]) for row in rows}),
        "annotations": len(rows),
        "is_simulated": any(row["is_simulated"] for row in rows),
        "policy": str(plan.policy(number)),
        "win_rate": judged["win_rate"],
        "gold_gain": judged["gold_gain"],
        "win_rate_reward": judged["win_rate_reward"],
        "coverage_measured": reward["coverage_measured"],
        "pair_accuracy": reward["pair_accuracy"],
    }


def describe_round(line: dict[str, Any]) -> str:
    """A round in a line: WinRate over the base model by the gold judge, which is simulated."""
    return (
        f"round {line['round']}: {line['annotated_candidates']} candidates annotated ({line['select']}"
        f"{', simulated' if line['is_simulated'] else ''}); WinRate over base (gold judge, simulated) "
        f"{show_estimate(line['win_rate'], '.1%')}, gain {line['gold_gain']['value']:+.4f}"
    )
