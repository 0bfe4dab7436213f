"""Compares the last policies of finished evaluations or rounds, by the gold judge, on the same prompts and noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Out
from rlhf.errors import UserError
from rlhf.evaluation.evaluation import GOLD_JUDGE
from rlhf.reports.intervals import Estimate, estimate_figure, estimate_share, show_estimate, wins
from rlhf.reports.records import read_record
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.tables import EVALUATION, stream_table
from rlhf.storage.url_path import as_path

SAME = 1e-4
"""Largest difference of the base model's gold utilities under the same noise; other noise moves them by 1e-2."""
Sample = tuple[str, int]
"""Prompt id and sample index."""
Gold = dict[Sample, float]


@dataclass(frozen=True, kw_only=True)
class RoundLine:
    """Line of `rounds.json`, as far as it is needed here."""

    annotated_candidates: int
    annotations: int
    is_simulated: bool
    policy: str


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Annotations and updates that a run was given over all rounds; zeros for an evaluation, which has no record."""

    folder: str
    rounds: int
    annotated_candidates: int
    annotations: int
    is_simulated: bool
    updates: int


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """Folder of `rlhf rounds` or `rlhf evaluate`, with the marks of its last policy."""

    effort: Effort
    gold: dict[str, Gold]
    """Gold utilities of `base` and of the last policy, `aligned`."""
    photographs: dict[Sample, str]


@dataclass(frozen=True, kw_only=True)
class PairFigures:
    """Figures of one policy over another by the gold judge."""

    win_rate: Estimate
    gold_gain: Estimate


@dataclass(frozen=True, kw_only=True)
class RunsComparison(PairFigures):
    """Figures of the challenger over another name, all pairs together."""

    pairs: list[PairFigures]
    """Figures of the single pairs of runs."""
    is_equal_effort: bool


@dataclass(frozen=True, kw_only=True)
class RunsSummary:
    """Summary, as `runs_study.json` holds it."""

    judge: str = GOLD_JUDGE
    challenger: str
    runs: dict[str, list[Effort]]
    over_base: dict[str, PairFigures]
    over_others: dict[str, RunsComparison]


def read_run(folder: Path) -> JudgedRun:
    """Reads a finished folder. Raises UserError if it is neither of the two, or its last round is not evaluated."""
    path, lines, evaluation = folder / "rounds.json", [], folder
    if path.is_file():
        remedy = "let `rlhf rounds` write it again"
        lines = read_record(list[RoundLine], path, remedy)
        if not lines:
            raise UserError(f"{path}: holds no finished rounds; {remedy}")
        if (folder / f"round-{len(lines) + 1}").exists():
            raise UserError(f"{folder}: round {len(lines) + 1} has begun and is not finished; let `rlhf rounds` go on")
        evaluation = folder / f"round-{len(lines)}" / "evaluation"
    elif not (folder / "summary.json").is_file():
        raise UserError(f"{folder}: no finished rounds or evaluation; name what `rlhf rounds` or `evaluate` wrote")
    gold: dict[str, Gold] = {"base": {}, "aligned": {}}
    photographs = {}
    for row in stream_table(evaluation, EVALUATION):
        key = (row["prompt_id"], row["sample_index"])
        gold[row["policy"]][key] = row["gold"]
        photographs[key] = row["photograph"]
    return JudgedRun(effort=measure_effort(folder, lines), gold=gold, photographs=photographs)


def measure_effort(folder: Path, lines: Sequence[RoundLine]) -> Effort:
    """Returns the sums over all rounds."""
    return Effort(
        folder=str(folder),
        rounds=len(lines),
        annotated_candidates=sum(line.annotated_candidates for line in lines),
        annotations=sum(line.annotations for line in lines),
        is_simulated=any(line.is_simulated for line in lines),
        updates=sum(int(line.policy.rpartition("-")[2]) for line in lines),
    )


def study_runs(named: Sequence[tuple[str, Path]], out: Path) -> RunsSummary:
    """Compares the first name with every other one; writes `runs_study.json`.

    A name may have several folders, one per seed: the first of each name are compared with one another, then the
    second. Intervals are over photographs, with the rows of all pairs for a photograph together; they
    say what other photographs would show. Only the single pairs say what other seeds would show. Raises UserError if
    names have unequal numbers of folders, or folders of a pair were judged on other prompts or noise.
    """
    runs: dict[str, list[JudgedRun]] = {}
    for name, folder in named:
        runs.setdefault(name, []).append(read_run(folder))
    if len(runs) < 2:
        raise UserError("study runs: nothing to compare; give folders of two names, as NAME=FOLDER")
    if len({len(group) for group in runs.values()}) > 1:
        raise UserError("study runs: every name needs as many folders as the others, one per seed")
    first, *others = runs
    over_base = {
        name: judge_pairs([(run.gold["aligned"], run.gold["base"], run.photographs) for run in group])
        for name, group in runs.items()
    }
    summary = RunsSummary(
        challenger=first,
        runs={name: [run.effort for run in group] for name, group in runs.items()},
        over_base=over_base,
        over_others={name: compare_runs(runs[first], runs[name]) for name in others},
    )
    atomic_write_json(out / "runs_study.json", asdict(summary))
    return summary


def compare_runs(challengers: list[JudgedRun], others: list[JudgedRun]) -> RunsComparison:
    """Compares pair by pair and all pairs together. Raises UserError if a pair was not judged on the same samples."""
    triples = []
    for challenger, other in zip(challengers, others, strict=True):
        base, same = (run.gold["base"] for run in (challenger, other))
        if base.keys() != same.keys() or any(abs(base[key] - same[key]) > SAME for key in base):
            raise UserError(
                f"{challenger.effort.folder} and {other.effort.folder}: judged on other prompts or noise, as the base "
                "model's utilities differ; compare runs of one seed, evaluation photographs and settings `evaluate`"
            )
        triples.append((challenger.gold["aligned"], other.gold["aligned"], challenger.photographs))
    efforts = [[(run.effort.annotations, run.effort.updates) for run in group] for group in (challengers, others)]
    singles = [judge_pairs([triple]) for triple in triples]
    return RunsComparison(**vars(judge_pairs(triples)), pairs=singles, is_equal_effort=efforts[0] == efforts[1])


def judge_pairs(triples: list[tuple[Gold, Gold, dict[Sample, str]]]) -> PairFigures:
    """Returns WinRate and mean gain of the first utilities of each triple over its second, over photographs."""
    rows = [(ours[key], theirs[key], names[key]) for ours, theirs, names in triples for key in sorted(theirs)]
    ours, theirs, photographs = zip(*rows, strict=True)
    differences = np.subtract(ours, theirs)
    return PairFigures(
        win_rate=estimate_share(wins(np.array(ours), np.array(theirs)), photographs),
        gold_gain=estimate_figure(differences, photographs),
    )


def format_study(summary: RunsSummary) -> str:
    """Formats the summary for the terminal."""
    lines = []
    for name, efforts in summary.runs.items():
        lines.append(f"{name}: {_describe(summary.over_base[name])} over base; {len(efforts)} run(s)")
        for effort in [effort for effort in efforts if effort.rounds]:
            simulated = " (simulated)" if effort.is_simulated else ""
            lines.append(
                f"    {effort.folder}: {effort.rounds} round(s), {effort.annotated_candidates} candidates, "
                f"{effort.annotations} annotations{simulated}, {effort.updates} updates"
            )
    for name, figures in summary.over_others.items():
        lines.append(f"{summary.challenger} over {name}: {_describe(figures)}")
        lines += [f"    pair {number}: {_describe(pair)}" for number, pair in enumerate(figures.pairs, 1)]
        if not figures.is_equal_effort:
            lines.append("    numbers of annotations or updates differ, so this does not compare the number of rounds")
    return "\n".join([*lines, "WinRate and gain by the gold judge, which is simulated; 95 % intervals"])


def _describe(figures: PairFigures) -> str:
    return f"WinRate {show_estimate(figures.win_rate, '.1%')}, gain {show_estimate(figures.gold_gain, '+.4f')}"


def main(
    folders: Annotated[
        list[str],
        typer.Argument(help="Folders of `rlhf rounds` or `evaluate`, or NAME=FOLDER: one per seed of each name."),
    ],
    out: Out,
) -> None:
    """Compare the last policies of finished runs, the first over the others: WinRate and gain by the gold judge."""
    named = []
    for entry in folders:
        name, _, folder = entry.partition("=")
        if not folder or "/" in name:  # A path or URL may hold "=".
            name, folder = as_path(entry).name, entry
        named.append((name, as_path(folder)))
    print(format_study(study_runs(named, out)))


if __name__ == "__main__":
    run_as_program(main)
