"""People compare two contestants of an evaluation, pair by pair and blind: the pairs, the choices, the preference."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf.data.annotation_items import AnnotationItems, load_items
from rlhf.data.annotation_store import AnnotationStore
from rlhf.errors import UserError
from rlhf.evaluation.judged_store import CONTESTANTS, PAINTED
from rlhf.reports.intervals import bootstrap_means, show_estimate, summarise_draws
from rlhf.storage.atomic_files import atomic_write_json, finite
from rlhf.storage.tables import CANDIDATES, read_table, write_table

PREFERENCES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("photograph", pa.string()),
        ("hole", pa.string()),
        ("annotator", pa.string()),
        ("round", pa.int32()),
        ("preferred", pa.string()),
        ("annotated_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Of `preferences.parquet`; `preferred` names a contestant, null where the person saw no difference."""
FIRST, SECOND = 0, 1
"""Sample indices of the two contestants in the pairs that are laid out."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two contestants' images of the same prompts, ready to be shown."""

    first: str
    second: str
    items: AnnotationItems
    photographs: Mapping[str, str]
    """By prompt."""
    holes: Mapping[str, str]
    """Hole family by prompt."""

    def export(self, store: AnnotationStore, out: Path) -> int:
        """Write `preferences.parquet` and `preference.json` into `out`; returns the number of choices.

        Where there is none, nothing is written.
        """
        rows = read_choices(store.rows(), (self.first, self.second))
        if not rows:
            return 0
        rows = [
            row | {"photograph": self.photographs[p], "hole": self.holes[p]} for row in rows for p in [row["prompt_id"]]
        ]
        write_table(rows, PREFERENCES, out / "preferences.parquet")
        atomic_write_json(out / "preference.json", summarise_preferences(rows, self.first, self.second))
        return len(rows)


def lay_out_pairs(evaluation: Path, first: str, second: str, prompts: Path, out: Path) -> Pairs:
    """The first sample of both contestants for every prompt that both filled, kept in `out/pairs`.

    Raises UserError where a contestant is not in the evaluation, is compared with itself, or no prompt is common.
    """
    if first == second:
        raise UserError(f"compare: {first} with itself; name two contestants")
    images = {name: _read_images(evaluation, name) for name in (first, second)}
    common = [prompt_id for prompt_id in images[first] if prompt_id in images[second]]
    if not common:
        raise UserError(f"{evaluation}: {first} and {second} have no prompt in common; evaluate them on the same ones")
    rows = [
        dict.fromkeys(CANDIDATES.names, 0)
        | {"prompt_id": prompt_id, "sample_index": index, "image": images[name][prompt_id]["image"]}
        for prompt_id in common
        for index, name in ((FIRST, first), (SECOND, second))
    ]
    write_table(rows, CANDIDATES, out / "pairs" / "candidates.parquet")
    return Pairs(
        first=first,
        second=second,
        items=load_items(out / "pairs", prompts),
        photographs={prompt_id: images[first][prompt_id]["photograph"] for prompt_id in common},
        holes={prompt_id: images[first][prompt_id]["hole"] for prompt_id in common},
    )


def _read_images(evaluation: Path, name: str) -> dict[str, dict[str, Any]]:
    table = evaluation / CONTESTANTS / f"{name}.parquet"
    if not table.is_file():
        found = sorted(path.stem for path in (evaluation / CONTESTANTS).glob("*.parquet"))
        there = f"it holds {', '.join(found)}" if found else "let `rlhf evaluate` write it"
        raise UserError(f"{evaluation}: no contestant {name} there; {there}")
    return {row["prompt_id"]: row for row in read_table(table, PAINTED) if row["sample_index"] == 0}


def read_choices(rows: Sequence[Mapping[str, Any]], names: tuple[str, str]) -> list[dict[str, Any]]:
    """Stored marks, in which a pair shares one point, as choices: who was preferred by whom, when.

    A pair of which only one picture is marked yet is left out.
    """
    pairs: dict[tuple[str, str, int], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        pairs[row["prompt_id"], row["annotator"], row["round"]][row["sample_index"]] = row
    choices = []
    for (prompt_id, annotator, round_), pair in pairs.items():
        if len(pair) < len(names):
            continue
        difference = pair[FIRST]["overall"] - pair[SECOND]["overall"]
        choices.append(
            {
                "prompt_id": prompt_id,
                "annotator": annotator,
                "round": round_,
                "preferred": None if difference == 0 else names[FIRST if difference > 0 else SECOND],
                "annotated_at": datetime.fromtimestamp(max(row["judged_at"] for row in pair.values()), UTC),
            }
        )
    return choices


def summarise_preferences(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> dict[str, Any]:
    """How often the first is preferred, 1/2 for no difference, with 95 % intervals by bootstrap over photographs.

    Pairs that a person saw for the second time tell only how often they chose the same again.
    """
    shown = [row for row in rows if row["round"] == 0]
    repeated = {(row["annotator"], row["prompt_id"]): row["preferred"] for row in rows if row["round"] > 0}
    again = [
        row["preferred"] == repeated[key] for row in shown if (key := (row["annotator"], row["prompt_id"])) in repeated
    ]

    def preference(chosen: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        points = np.array([{first: 1.0, second: 0.0}.get(row["preferred"], 0.5) for row in chosen])
        photographs = [row["photograph"] for row in chosen]
        mean, draws = bootstrap_means(points[:, None], photographs, resamples=2000)
        found = finite(asdict(summarise_draws(mean[0], draws[:, 0], len(set(photographs)))))
        return found | {"choices": len(chosen)}

    def by(column: str) -> dict[str, Any]:
        return {
            name: preference([r for r in shown if r[column] == name]) for name in sorted({r[column] for r in shown})
        }

    return {
        "first": first,
        "second": second,
        "judge": "people, pairwise and blind",
        "preference": preference(shown),
        "no_difference": float(np.mean([row["preferred"] is None for row in shown])),
        "by_hole": by("hole"),
        "by_annotator": by("annotator"),
        "repeated": {"choices": len(again), "same": float(np.mean(again)) if again else None},
    }


def format_preference(summary: Mapping[str, Any]) -> str:
    """The summary for the terminal."""
    people, repeated = summary["by_annotator"], summary["repeated"]
    lines = [f"{summary['first']} over {summary['second']}: {_describe(summary['preference'])}"]
    lines += [f"  {hole}: {_describe(found)}" for hole, found in summary["by_hole"].items()]
    if len(people) > 1:
        lines += [f"  by {name}: {_describe(found)}" for name, found in people.items()]
    lines.append(f"no difference seen in {summary['no_difference']:.0%}; 50 % is no preference")
    if repeated["choices"]:
        lines.append(f"of {repeated['choices']} pairs seen twice, {repeated['same']:.0%} were judged the same again")
    return "\n".join(lines)


def _describe(found: Mapping[str, Any]) -> str:
    return f"{show_estimate(found, '.1%')} of {found['choices']} choices, {found['clusters']} photographs"
