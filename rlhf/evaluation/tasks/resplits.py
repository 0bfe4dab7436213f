"""Studies that measure the same on several splits of the photographs: each split a file, so that a study goes on."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.reports.intervals import cluster_bootstrap
from rlhf.storage.atomic_files import atomic_write_json, read_json

AGAIN = "remove it, and the study measures it again"


def run_resplits(
    out: Path,
    settings: dict[str, Any],
    count: int,
    measure: Callable[[int], dict[str, Any]],
    *,
    stage: str,
    name: str = "resplit",
) -> list[dict[str, Any]]:
    """What `measure` says of the splits 0 to `count` - 1; those that lie in `out` are not measured again.

    Splits are whatever differs by its seed; `name` begins the names of their files.
    Raises UserError where `out` holds a study of other settings.
    """
    path = out / "settings.json"
    if path.is_file() and read_json(path, AGAIN) != settings:
        raise UserError(f"{out}: holds a study with other settings or annotations; choose another --out")
    atomic_write_json(path, settings)
    records = []
    for seed in progress_bar(range(count), stage=stage):
        path = out / f"{name}-{seed:02d}.json"
        if not path.is_file():
            atomic_write_json(path, measure(seed))
        records.append(read_json(path, AGAIN))
    return records


def average(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean of one figure per split with the 95 % interval of a bootstrap over splits; None where no split has it."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return None
    return asdict(cluster_bootstrap(np.array(known), [str(i) for i in range(len(known))]))
