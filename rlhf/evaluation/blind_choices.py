"""Blind choices of people between two contestants of an evaluation: the pairs, the choices, and their summary."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa

from rlhf.data.annotation.items import AnnotationItems, load_items
from rlhf.data.annotation.store import AnnotationStore
from rlhf.data.rows import JudgementRow
from rlhf.errors import UserError
from rlhf.evaluation.judged_store import CONTESTANTS, PAINTED, PaintedRow
from rlhf.reports.intervals import Estimate, estimate_share, show_estimate
from rlhf.reports.records import read_record
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.tables import CANDIDATES, read_table, write_table

BLIND_CHOICES = pa.schema(
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
"""Columns of `preferences.parquet`; `preferred` names a contestant, or is null if the person saw no difference."""
SUMMARY = "preference.json"
FIRST, SECOND = 0, 1
"""Sample indices of the two contestants in the pairs that are laid out."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Choice of one person for one pair."""

    prompt_id: str
    photograph: str
    hole: str
    annotator: str
    round: int
    """0, or 1 if the person sees the pair for the second time."""
    preferred: str | None
    """Name of a contestant; None if the person saw no difference."""
    annotated_at: datetime


@dataclass(frozen=True, kw_only=True)
class ChoiceShare(Estimate):
    """Share of choices for the first contestant; no difference counts half."""

    choices: int


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Pairs that a person saw twice."""

    choices: int
    same: float | None
    """Share that was judged the same again; None without such pairs."""


@dataclass(frozen=True, kw_only=True)
class ChoicesSummary:
    """Summary of all choices, as `preference.json` holds it."""

    first: str
    second: str
    judge: str = "people, pairwise and blind"
    preference: ChoiceShare
    no_difference: float
    """Share of choices in which the person saw no difference."""
    by_hole: dict[str, ChoiceShare]
    by_annotator: dict[str, ChoiceShare]
    repeated: Repeats


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Images of the same prompts by two contestants, ready to be shown."""

    first: str
    second: str
    items: AnnotationItems
    photographs: Mapping[str, str]
    """Photograph by prompt."""
    holes: Mapping[str, str]
    """Hole family by prompt."""

    def read_choices(self, rows: Sequence[JudgementRow]) -> list[Choice]:
        """Returns the choices in the marks of an annotation store, where the two pictures of a pair share one point.

        A pair with only one marked picture is left out.
        """
        names = (self.first, self.second)
        pairs: dict[tuple[str, str, int], dict[int, JudgementRow]] = defaultdict(dict)
        for row in rows:
            pairs[row["prompt_id"], row["annotator"], row["round"]][row["sample_index"]] = row
        choices = []
        for (prompt_id, annotator, round_), pair in pairs.items():
            if len(pair) < len(names):
                continue
            difference = pair[FIRST]["overall"] - pair[SECOND]["overall"]
            choices.append(
                Choice(
                    prompt_id=prompt_id,
                    photograph=self.photographs[prompt_id],
                    hole=self.holes[prompt_id],
                    annotator=annotator,
                    round=round_,
                    preferred=None if difference == 0 else names[FIRST if difference > 0 else SECOND],
                    annotated_at=datetime.fromtimestamp(max(row["judged_at"] for row in pair.values()), UTC),
                )
            )
        return choices

    def export(self, store: AnnotationStore, out: Path) -> int:
        """Writes `preferences.parquet` and `preference.json` into `out`, or nothing if there are no choices.

        Returns the number of choices.
        """
        choices = self.read_choices(store.rows())
        if choices:
            write_table(map(asdict, choices), BLIND_CHOICES, out / "preferences.parquet")
            atomic_write_json(out / SUMMARY, asdict(summarise_choices(choices, self.first, self.second)))
        return len(choices)


def lay_out_pairs(evaluation: Path, first: str, second: str, prompts: Path, out: Path) -> Pairs:
    """Writes the first samples of both contestants, for every prompt that both filled, into `out/pairs`.

    Raises UserError if a contestant is missing from the evaluation, is compared with itself, or no prompt is common.
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


def _read_images(evaluation: Path, name: str) -> dict[str, PaintedRow]:
    table = evaluation / CONTESTANTS / f"{name}.parquet"
    if not table.is_file():
        found = sorted(path.stem for path in (evaluation / CONTESTANTS).glob("*.parquet"))
        there = f"it holds {', '.join(found)}" if found else "let `rlhf evaluate` write it"
        raise UserError(f"{evaluation}: no contestant {name} there; {there}")
    rows = cast(list[PaintedRow], read_table(table, PAINTED))
    return {row["prompt_id"]: row for row in rows if row["sample_index"] == 0}


def summarise_choices(choices: Sequence[Choice], first: str, second: str) -> ChoicesSummary:
    """Returns how often the first contestant is preferred, with 95 % intervals over photographs.

    Pairs that a person saw for the second time only show how often that person chose the same again.
    """
    shown = [choice for choice in choices if choice.round == 0]
    repeated = {(choice.annotator, choice.prompt_id): choice.preferred for choice in choices if choice.round > 0}
    again = [c.preferred == repeated[key] for c in shown if (key := (c.annotator, c.prompt_id)) in repeated]

    def share(chosen: Sequence[Choice]) -> ChoiceShare:
        """Returns the share of these choices for the first contestant."""
        points = np.array([{first: 1.0, second: 0.0}.get(choice.preferred or "", 0.5) for choice in chosen])
        photographs = [choice.photograph for choice in chosen]
        return ChoiceShare(**vars(estimate_share(points, photographs)), choices=len(chosen))

    def shares_by(key: Callable[[Choice], str]) -> dict[str, ChoiceShare]:
        """Returns the shares by the value of `key`."""
        return {name: share([c for c in shown if key(c) == name]) for name in sorted(set(map(key, shown)))}

    return ChoicesSummary(
        first=first,
        second=second,
        preference=share(shown),
        no_difference=float(np.mean([choice.preferred is None for choice in shown])),
        by_hole=shares_by(lambda choice: choice.hole),
        by_annotator=shares_by(lambda choice: choice.annotator),
        repeated=Repeats(choices=len(again), same=float(np.mean(again)) if again else None),
    )


def read_summary(path: Path) -> ChoicesSummary:
    """Reads `preference.json`. Raises UserError if it is damaged."""
    return read_record(ChoicesSummary, path, "choose again")


def format_choices(summary: ChoicesSummary) -> str:
    """Formats the summary for the terminal."""
    people, repeated = summary.by_annotator, summary.repeated
    lines = [f"{summary.first} over {summary.second}: {_describe(summary.preference)}"]
    lines += [f"  {hole}: {_describe(share)}" for hole, share in summary.by_hole.items()]
    if len(people) > 1:
        lines += [f"  by {name}: {_describe(share)}" for name, share in people.items()]
    lines.append(f"no difference seen in {summary.no_difference:.0%}; 50 % is no preference")
    if repeated.same is not None:
        lines.append(f"{repeated.same:.0%} of {repeated.choices} pairs seen twice were judged the same again")
    return "\n".join(lines)


def _describe(share: ChoiceShare) -> str:
    return f"{show_estimate(share, '.1%')} of {share.choices} choices, {share.clusters} photographs"
