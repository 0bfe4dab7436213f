"""Finished evaluations, or rounds, compared: their last policies, by the gold judge, on the same prompts and noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Out
from rlhf.errors import UserError
from rlhf.reports.intervals import cluster_bootstrap, show_estimate, wins
from rlhf.storage.atomic_files import atomic_write_json, finite, read_json
from rlhf.storage.tables import EVALUATION, stream_table
from rlhf.storage.url_path import as_path

SAME = 1e-4
"""Gold utilities of the base model that differ by less are of the same noise; other noise moves them by 1e-2."""
NEEDED = {"annotated_candidates", "annotations", "is_simulated", "policy"}
"""Of a line of `rounds.json`."""
Sample = tuple[str, int]
"""Prompt id and sample index."""
Gold = dict[Sample, float]


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """One folder of `rlhf rounds` or `rlhf evaluate`, and how its last policy was judged."""

    folder: Path
    lines: list[dict[str, Any]]
    """Of `rounds.json`; none of an evaluation, of which nobody noted what its policy was given."""
    gold: dict[str, Gold]
    """Gold utilities of `base` and of the last policy, `aligned`."""
    photographs: dict[Sample, str]

    @property
    def effort(self) -> dict[str, Any]:
        """What it was given over all rounds."""
        return {
            "folder": str(self.folder),
            "rounds": len(self.lines),
            "annotated_candidates": sum(line["annotated_candidates"] for line in self.lines),
            "annotations": sum(line["annotations"] for line in self.lines),
            "is_simulated": any(line["is_simulated"] for line in self.lines),
            "updates": sum(int(line["policy"].rpartition("-")[2]) for line in self.lines),
        }


def read_run(folder: Path) -> JudgedRun:
    """A finished folder; UserError where it is neither of the two, or its last round has not been evaluated."""
    path, lines, evaluation = folder / "rounds.json", [], folder
    if path.is_file():
        lines = read_json(path, "let `rlhf rounds` write it again")
        if (
            not isinstance(lines, list)
            or not lines
            or not all(isinstance(x, dict) and x.keys() >= NEEDED for x in lines)
        ):
            raise UserError(f"{path}: is no list of finished rounds; let `rlhf rounds` write it again")
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
    return JudgedRun(folder=folder, lines=lines, gold=gold, photographs=photographs)


def study_runs(named: Sequence[tuple[str, Path]], out: Path) -> dict[str, Any]:
    """The first name over each other one; writes and returns `runs_study.json`.

    A name may have several folders, of several seeds: the first of each name are compared with one
    another, then the second. Intervals are by bootstrap over photographs, all pairs' rows of one together:
    they tell what other photographs would show. What other seeds would, only the single pairs tell.
    Raises UserError where names have unequal numbers of folders, or folders of a pair were judged on
    other prompts or noise.
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
    summary = {
        "judge": "gold judge: the noiseless utility of the simulated annotators",
        "challenger": first,
        "runs": {name: [run.effort for run in group] for name, group in runs.items()},
        "over_base": over_base,
        "over_others": {name: compare_runs(runs[first], runs[name]) for name in others},
    }
    atomic_write_json(out / "runs_study.json", summary)
    return finite(summary)


def compare_runs(challengers: list[JudgedRun], others: list[JudgedRun]) -> dict[str, Any]:
    """The challengers over the others, pair by pair and together; UserError where a pair was not judged alike."""
    triples = []
    for challenger, other in zip(challengers, others, strict=True):
        base, same = (run.gold["base"] for run in (challenger, other))
        if base.keys() != same.keys() or any(abs(base[key] - same[key]) > SAME for key in base):
            raise UserError(
                f"{challenger.folder} and {other.folder}: judged on other prompts or noise, as the base model's "
                "utilities tell; compare runs of one seed, evaluation photographs and settings `evaluate`"
            )
        triples.append((challenger.gold["aligned"], other.gold["aligned"], challenger.photographs))
    efforts = [[(run.effort["annotations"], run.effort["updates"]) for run in group] for group in (challengers, others)]
    singles = [judge_pairs([triple]) for triple in triples]
    return judge_pairs(triples) | {"pairs": singles, "is_equal_effort": efforts[0] == efforts[1]}


def judge_pairs(triples: list[tuple[Gold, Gold, dict[Sample, str]]]) -> dict[str, Any]:
    """WinRate and mean gain of the first utilities of each triple over its second; photographs are the clusters."""
    rows = [(ours[key], theirs[key], names[key]) for ours, theirs, names in triples for key in sorted(theirs)]
    ours, theirs, photographs = zip(*rows, strict=True)
    differences = np.subtract(ours, theirs)
    return {
        "win_rate": asdict(cluster_bootstrap(wins(np.array(ours), np.array(theirs)), photographs)),
        "gold_gain": asdict(cluster_bootstrap(differences, photographs)),
    }


def format_study(summary: dict[str, Any]) -> str:
    """The summary for the terminal."""
    lines = []
    for name, efforts in summary["runs"].items():
        lines.append(f"{name}: {_describe(summary['over_base'][name])} over base; {len(efforts)} run(s)")
        for effort in [effort for effort in efforts if effort["rounds"]]:
            simulated = " (simulated)" if effort["is_simulated"] else ""
            lines.append(
                f"    {effort['folder']}: {effort['rounds']} round(s), {effort['annotated_candidates']} candidates, "
                f"{effort['annotations']} annotations{simulated}, {effort['updates']} updates"
            )
    for name, figures in summary["over_others"].items():
        lines.append(f"{summary['challenger']} over {name}: {_describe(figures)}")
        lines += [f"    pair {number}: {_describe(pair)}" for number, pair in enumerate(figures["pairs"], 1)]
        if not figures["is_equal_effort"]:
            lines.append("    numbers of annotations or updates differ, so this does not compare the number of rounds")
    return "\n".join([*lines, "WinRate and gain by the gold judge, which is simulated; 95 % intervals"])


def _describe(figures: dict[str, Any]) -> str:
    rate, gain = show_estimate(figures["win_rate"], ".1%"), show_estimate(figures["gold_gain"], "+.4f")
    return f"WinRate {rate}, gain {gain}"


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
        if not folder or "/" in name:  # of a path or URL that holds "="
            name, folder = as_path(entry).name, entry
        named.append((name, as_path(folder)))
    print(format_study(study_runs(named, out)))


if __name__ == "__main__":
    run_as_program(main)
