"""How far annotators agree: with one another, and each with their own earlier marks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.tables import MARKS

Row = Mapping[str, Any]
"""A row of the annotations table; `round` may be absent."""


def measure_agreement(rows: Iterable[Row]) -> dict[str, Any]:
    """Krippendorff's alpha (interval level) of each mark, over the images that two or more people scored.

    1 is agreement, 0 is what chance gives; null where no image has two annotators or all marks are
    the same. Only first rounds count: a person's repeat says nothing about other people.
    """
    firsts = [row for row in rows if not row.get("round")]
    annotators = {name: i for i, name in enumerate(sorted({row["annotator"] for row in firsts}))}
    images: dict[tuple[str, int], int] = {}
    for row in firsts:
        images.setdefault((row["prompt_id"], row["sample_index"]), len(images))
    marks = np.full((len(MARKS), len(annotators), len(images)), np.nan)
    for row in firsts:
        column = images[row["prompt_id"], row["sample_index"]]
        marks[:, annotators[row["annotator"]], column] = [row[name] for name in MARKS]
    shared = (~np.isnan(marks[0])).sum(axis=0) >= 2
    return {
        "annotators": len(annotators),
        "images": len(images),
        "images_scored_by_several": int(shared.sum()),
        "krippendorff_alpha": {name: _alpha(marks[i][:, shared]) for i, name in enumerate(MARKS)},
        "is_simulated": any(row.get("is_simulated") for row in firsts),
    }


def _alpha(marks: np.ndarray) -> float | None:
    """Marks [annotators, images], NaN where there is none."""
    import krippendorff

    if len(np.unique(marks[~np.isnan(marks)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=marks, level_of_measurement="interval"))


def write_agreement(rows: Iterable[Row], out: Path) -> dict[str, Any]:
    """Write `out/agreement.json`; returns what it holds."""
    figures = measure_agreement(rows)
    atomic_write_json(out / "agreement.json", figures)
    return figures


def measure_consistency(rows: Iterable[Row]) -> dict[str, Any]:
    """One person's agreement with their earlier marks of the images that they saw twice.

    For each mark the mean absolute difference, in points of the scale, and the quadratically
    weighted kappa (null where it is undefined).
    """
    rounds: dict[tuple[str, int], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        rounds[row["prompt_id"], row["sample_index"]][row["round"]] = row
    pairs = [(seen[0], seen[1]) for seen in rounds.values() if len(seen) == 2]
    figures: dict[str, Any] = {"images": len(pairs), "mean_absolute_difference": {}, "weighted_kappa": {}}
    for name in MARKS:
        marks = np.array([[row[name] for row in pair] for pair in pairs], dtype=float).reshape(-1, 2)
        distance = float(np.abs(marks[:, 0] - marks[:, 1]).mean()) if len(pairs) else None
        figures["mean_absolute_difference"][name] = distance
        figures["weighted_kappa"][name] = weighted_kappa(marks)
    return figures


def weighted_kappa(marks: np.ndarray) -> float | None:
    """Cohen's kappa with quadratic weights, of paired marks [N, 2] (Cohen 1968).

    One less the mean squared difference of the pairs over that of all first with all second marks;
    None where the latter is 0.
    """
    if not len(marks):
        return None
    expected = ((marks[:, :1] - marks[None, :, 1]) ** 2).mean()
    if expected == 0:
        return None
    return float(1 - ((marks[:, 0] - marks[:, 1]) ** 2).mean() / expected)
