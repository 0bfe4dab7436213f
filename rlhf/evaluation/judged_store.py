"""Stores judged contestants on disk, one table each, so that an interrupted comparison can be resumed."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch
from pydantic import JsonValue

from rlhf import __version__
from rlhf.data.prompts import Prompt
from rlhf.evaluation.judging import Judged, Jury, encode_picture
from rlhf.reports.records import dump_record
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import decode_image
from rlhf.storage.tables import IMAGE, ImageCell, image_cell, read_table, write_table

CONTESTANTS = "contestants"
"""Folder of an evaluation that holds a table `NAME.parquet` of each contestant's images."""
PAINTED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("photograph", pa.string()),
        ("hole", pa.string()),
        ("image", IMAGE),
    ]
)
"""Columns of such a table that hold the images."""


class PaintedRow(TypedDict):
    """A row of such a table, without the marks."""

    prompt_id: str
    sample_index: int
    photograph: str
    hole: str
    image: ImageCell


PROMPT_COLUMNS = [(name, pa.string()) for name in ("prompt_id", "photograph", "hole", "contestant")]


Inputs = Mapping[str, str | None]
"""Inputs of a contestant's images besides the settings, such as the checksum of weights or files."""


@dataclass(frozen=True, kw_only=True)
class JudgingSettings:
    """Settings on which the images and marks of all contestants depend."""

    prompts: str
    """Checksum of the prompts."""
    reward: str
    """Checksum of the reward."""
    judges: list[dict[str, JsonValue]]
    """Entries of the configuration's `judges` that judge."""
    seed: int
    evaluate: dict[str, JsonValue]
    """Section `evaluate`, without what does not change images or marks."""
    marks: tuple[str, ...]
    """Names of all marks."""
    precision: str
    version: str = __version__
    """Version of prefpaint-ray."""


class JudgedStore:
    """Tables `NAME.parquet` in a folder, each with a record `NAME.json` of its inputs."""

    def __init__(self, folder: Path, prompts: Sequence[Prompt], jury: Jury, settings: JudgingSettings) -> None:
        """Opens the store; contestants that were judged with other settings are judged again."""
        self._folder, self._jury = folder, jury
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._settings = asdict(settings)
        kinds = [("sample_index", pa.int32()), ("image", IMAGE), *((name, pa.float64()) for name in jury.marks)]
        self._schema = pa.schema(PROMPT_COLUMNS + kinds + [("diversity", pa.float64())])

    def judge(self, name: str, what: Inputs, judge: Callable[[], Judged]) -> Judged:
        """Reads contestant `name` if the same inputs `what` and settings made it; otherwise judges and stores it."""
        record = dump_record(self._settings | {"what": dict(what)})
        table, known = self._folder / f"{name}.parquet", self._folder / f"{name}.json"
        found = json.loads(known.read_text()) if known.is_file() else {}
        differing = found.pop("known_pixels_differ", None)
        if found == record and table.is_file():
            return self._read(table, differing)
        known.unlink(missing_ok=True)
        judged = judge()
        write_table(self._rows(name, judged), self._schema, table)
        atomic_write_json(known, record | {"known_pixels_differ": judged.known_pixels_differ})
        return judged

    def _rows(self, name: str, judged: Judged) -> Iterator[dict[str, Any]]:
        for p, prompt_id in enumerate(judged.prompt_ids):
            prompt = self._prompts[prompt_id]
            place = {"prompt_id": prompt_id, "photograph": prompt.photograph, "hole": prompt.hole, "contestant": name}
            for s in range(judged.samples):
                marks = {mark: _or_none(values[p, s]) for mark, values in judged.marks.items()}
                picture = image_cell(encode_picture(judged.images[p][s]), f"{prompt_id}_{s}_{name}.png")
                others = {"sample_index": s, "image": picture, "diversity": _or_none(judged.diversity[p])}
                yield place | others | marks

    def _read(self, table: Path, known_pixels_differ: int) -> Judged:
        rows = read_table(table, self._schema, may_be_empty=(*self._jury.marks, "diversity"))
        samples = 1 + max(row["sample_index"] for row in rows)
        firsts = rows[::samples]
        pictures = [torch.from_numpy(np.array(decode_image(row["image"]["bytes"]))) for row in rows]
        marks = {name: [_or_nan(row[name]) for row in rows] for name in self._jury.marks}
        shares = torch.stack([self._prompts[row["prompt_id"]].mask.mean() for row in firsts])
        return Judged(
            prompt_ids=tuple(row["prompt_id"] for row in firsts),
            images=[
                torch.stack(pictures[i : i + samples]).permute(0, 3, 1, 2) for i in range(0, len(pictures), samples)
            ],
            marks={name: np.reshape(values, (-1, samples)) for name, values in marks.items()},
            diversity=np.array([_or_nan(row["diversity"]) for row in firsts]),
            hole_share=shares.double().numpy(),
            known_pixels_differ=known_pixels_differ,
        )


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
