"""Agreement of annotators: with one another, and of each with their own earlier marks."""

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

    1 is full agreement, 0 is chance; null if no image has two annotators or all marks are equal. Only first rounds
    count, since a person's repeat says nothing about other people.
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
        "krippendorff_alpha": {name: interval_alpha(marks[i][:, shared]) for i, name in enumerate(MARKS)},
        "is_simulated": any(row.get("is_simulated") for row in firsts),
    }


def interval_alpha(marks: np.ndarray) -> float | None:
    """Krippendorff's alpha with interval differences (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    One minus observed over expected disagreement: the mean squared difference of marks within an image, over that of
    all marks. `marks` is [annotators, images], NaN for no mark; images with fewer than two marks do not count. Returns
    None if all marks are equal, or none can be paired.
    """
    counts = (~np.isnan(marks)).sum(axis=0)
    marks, counts = marks[:, counts >= 2], counts[counts >= 2]
    expected = _squared_differences(marks.ravel())
    if expected == 0:
        return None
    within = np.array([_squared_differences(image) for image in marks.T])
    return float(1 - (counts.sum() - 1) * (within / (counts - 1)).sum() / expected)


def _squared_differences(marks: np.ndarray) -> float:
    """Sum of squared differences over all ordered pairs of marks that are not NaN."""
    marks = marks[~np.isnan(marks)]
    return float(2 * len(marks) * ((marks - marks.mean()) ** 2).sum()) if len(marks) else 0.0


def write_agreement(rows: Iterable[Row], out: Path) -> dict[str, Any]:
    """Write `out/agreement.json`; returns what it holds."""
    figures = measure_agreement(rows)
    atomic_write_json(out / "agreement.json", figures)
    return figures


def measure_consistency(rows: Iterable[Row]) -> dict[str, Any]:
    """One person's agreement with their earlier marks of the images that they saw twice.

    The figures of each mark are the mean absolute difference, in points of the scale, and the quadratically weighted
    kappa (null if undefined).
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

    One minus the mean squared difference of the pairs, divided by that of all first with all second marks; None if the
    divisor is 0.
    """
    if not len(marks):
        return None
    expected = ((marks[:, :1] - marks[None, :, 1]) ** 2).mean()
    if expected == 0:
        return None
    return float(1 - ((marks[:, 0] - marks[:, 1]) ** 2).mean() / expected)
