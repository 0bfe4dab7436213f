"""Runs rounds of the method: annotate, learn the reward, align, evaluate. A round starts from the last round's policy.

Every stage is a command.
"""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.config.config_files import find_run_file, load_config
from rlhf.config.run_config import RunConfig
from rlhf.evaluation.evaluation import parse_summary
from rlhf.reports.intervals import Estimate, show_estimate
from rlhf.reports.records import read_record
from rlhf.rewards.learned.reward_report import UpdatedReport
from rlhf.storage.atomic_files import atomic_write_json, read_json
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, read_table, stream_table, write_table
from rlhf.workflows.stages import Settings, Stage, run_stages


@dataclass(frozen=True, kw_only=True)
class RoundsPlan:
    """Settings of all rounds, from the command line."""

    out: Path
    rounds: int
    annotations_per_round: int
    """Number of candidates annotated in a round, in whole prompts."""
    select: str
    """`uncertain` or `random`; the first round is random, since it has no reward yet."""
    people: bool
    """Whether people annotate on the page; otherwise simulated annotators do."""
    config: RunConfig
    options: tuple[str, ...]
    """Options --config and --set, which every stage gets."""

    def folder(self, number: int) -> Path:
        """Returns the folder of a round, from 1."""
        return self.out / f"round-{number}"

    def policy(self, number: int) -> Path | None:
        """Returns the policy that a round has aligned; None, the base model, for round 0."""
        return self.folder(number) / "align" / f"policy-{self.config.align.updates:06d}" if number else None

    def settings(self, *sections: str) -> Settings:
        """Returns the resolved settings on which a stage depends."""
        resolved = self.config.model_dump(mode="json")
        return {name: resolved[name] for name in ("seed", *sections)}


@dataclass(frozen=True, kw_only=True)
class RoundSummary:
    """Figures of a finished round: a line of `rounds.json`."""

    round: int
    """Number of the round, from 1."""
    select: str
    """Selection of the annotated prompts."""
    annotated_candidates: int
    annotations: int
    is_simulated: bool
    """Whether an annotator is simulated."""
    policy: str
    """Folder of the aligned policy."""
    win_rate: Estimate
    """WinRate over the base model by the gold judge."""
    gold_gain: Estimate
    win_rate_reward: Estimate
    """WinRate over the base model by the round's reward."""
    coverage_measured: Estimate
    """Coverage of the reward's bound on held-out annotations."""
    pair_accuracy: float | None
    """Share of held-out pairs of one prompt that the reward orders as annotated."""


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
) -> list[RoundSummary]:
    """Runs or resumes all rounds; returns the lines of `out/rounds.json`, one per finished round.

    If people annotate, it stops at a round without annotations and prints the command of their page; the same call
    then resumes. Raises UserError and SystemExit as `run_stages` does.
    """
    file = config or find_run_file("rounds")
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
    lines: list[RoundSummary] = []
    for number in range(1, rounds + 1):
        if not _run_round(plan, number):
            break
        lines.append(summarise_round(plan, number))
        atomic_write_json(plan.out / "rounds.json", list(map(asdict, lines)))
        print(describe_round(lines[-1]))
    return lines


def _run_round(plan: RoundsPlan, number: int) -> bool:
    """Runs one round; returns False if the round waits for people."""
    _run(plan, candidate_stages(plan, number), number)
    if plan.people and not (plan.folder(number) / "annotations" / "annotations.parquet").is_file():
        print(f"round {number}: let people annotate, then run the same command again to continue:")
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
    """Returns the stages of the training prompts and the held-out prompts."""
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
    """Returns the stages of the policy's candidates for all prompts, and of simulated annotations for some.

    Candidate numbers continue those of the last round, so their noise is new and all rounds fit in one table.
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
    """Returns the arguments of `rlhf annotate`; prompts of earlier rounds come only after all others."""
    folder = plan.folder(number)
    words = ["annotate", str(folder / "candidates"), "--out", str(folder / "annotations")]
    words += ["--limit", str(plan.annotations_per_round)]
    if plan.select == "uncertain" and number > 1:
        words += ["--select", "uncertain", "--reward", str(plan.folder(number - 1) / "reward")]
    for n in range(1, number):
        words += ["--earlier", str(plan.folder(n) / "annotations")]
    return [*words, *plan.options]


def learning_stages(plan: RoundsPlan, number: int) -> list[Stage]:
    """Returns the stages of the reward from all annotations so far, the alignment, and its evaluation."""
    folder, prompts = plan.folder(number), str(plan.out / "prompts")
    reward, run = str(folder / "reward"), folder / "align"
    align = ["align", "--prompts", prompts, "--reward", reward, "--out", str(run), *plan.options]
    # Each round has its own rollout noise.
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


def _annotated(plan: RoundsPlan, number: int) -> Settings:
    """Returns the number of annotations as a setting, so that further annotations outdate a reward."""
    return {"annotations": len(read_table(plan.folder(number) / "annotations", ANNOTATIONS))}


def collect_annotated(plan: RoundsPlan, number: int) -> None:
    """Copies the annotations of all rounds so far, and their candidates, into one folder."""
    folders = [plan.folder(n) for n in range(1, number + 1)]
    rows = [row for folder in folders for row in read_table(folder / "annotations", ANNOTATIONS)]
    keys = {(row["prompt_id"], row["sample_index"]) for row in rows}

    def annotated() -> Iterator[dict[str, Any]]:
        """Yields the rows of all annotated candidates."""
        for folder in folders:
            for row in stream_table(folder / "candidates", CANDIDATES):
                if (row["prompt_id"], row["sample_index"]) in keys:
                    yield row

    out = plan.folder(number) / "annotated"
    write_table(annotated(), CANDIDATES, out / "candidates" / "candidates.parquet")
    write_table(rows, ANNOTATIONS, out / "annotations" / "annotations.parquet")


def summarise_round(plan: RoundsPlan, number: int) -> RoundSummary:
    """Returns the figures of a finished round."""
    folder = plan.folder(number)
    path, remedy = folder / "evaluation" / "summary.json", "remove evaluation/ to evaluate again"
    judged = parse_summary(read_json(path, remedy), path, remedy)
    reward = read_record(UpdatedReport, folder / "reward" / "report.json", "remove reward/ to train it again")
    rows = read_table(folder / "annotations", ANNOTATIONS)
    return RoundSummary(
        round=number,
        select=plan.select if number > 1 else "random",
        annotated_candidates=len({(row["prompt_id"], row["sample_index"]) for row in rows}),
        annotations=len(rows),
        is_simulated=any(row["is_simulated"] for row in rows),
        policy=str(plan.policy(number)),
        win_rate=judged.win_rate,
        gold_gain=judged.gold_gain,
        win_rate_reward=judged.win_rate_reward,
        coverage_measured=reward.coverage_measured,
        pair_accuracy=reward.pair_accuracy,
    )


def describe_round(line: RoundSummary) -> str:
    """Formats a round as one line: WinRate over the base model by the gold judge, which is simulated."""
    simulated = ", simulated" if line.is_simulated else ""
    return (
        f"round {line.round}: {line.annotated_candidates} candidates annotated ({line.select}{simulated}); "
        f"WinRate over base (gold judge, simulated) {show_estimate(line.win_rate, '.1%')}, "
        f"gain {line.gold_gain.value:+.4f}"
    )
