"""Studies that take the same measurement on several splits; each split is a file, so a study can be resumed."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import JsonValue

from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.reports.intervals import Estimate, estimate_figure
from rlhf.reports.records import dump_record, read_record
from rlhf.storage.atomic_files import atomic_write_json, finite, read_json

AGAIN = "remove it, and the study measures it again"
T = TypeVar("T")
Settings = Mapping[str, JsonValue]
"""Settings and inputs of a study, compared as a whole with those in its folder."""


def run_resplits(
    out: Path,
    settings: Settings,
    count: int,
    measure: Callable[[int], T],
    kind: type[T],
    *,
    stage: str,
    name: str = "resplit",
) -> list[T]:
    """Returns the records, of type `kind`, of `measure` for splits 0 to `count` - 1; those in `out` are read back.

    Splits differ by their seed; `name` is the prefix of their files. Raises UserError if `out` holds a study with other
    settings.
    """
    check_settings(out, settings)
    records = []
    for seed in progress_bar(range(count), stage=stage):
        path = out / f"{name}-{seed:02d}.json"
        if not path.is_file():
            atomic_write_json(path, dump_record(measure(seed)))
        records.append(read_record(kind, path, AGAIN))
    return records


def check_settings(out: Path, settings: Settings) -> None:
    """Writes `settings.json` into the folder of a study. Raises UserError if the folder holds another study."""
    path, record = out / "settings.json", finite(dump_record(settings))
    if path.is_file() and read_json(path, AGAIN) != record:
        raise UserError(f"{out}: holds a study with other settings or inputs; choose another --out")
    atomic_write_json(path, record)


def average(values: Iterable[float | None]) -> Estimate | None:
    """Returns the mean of one figure per split with a 95 % interval over splits; None if no split has it."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return None
    return estimate_figure(np.array(known), [str(i) for i in range(len(known))])
