"""Agreement of annotators: with one another, and of each with their own earlier marks."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np

from rlhf.data.rows import AnnotationRow, JudgementRow, marks_of
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.tables import MARKS


class Agreement(TypedDict):
    """The content of `agreement.json`."""

    annotators: int
    images: int
    images_scored_by_several: int
    krippendorff_alpha: dict[str, float | None]
    """Alpha by mark; null if it is undefined."""
    is_simulated: bool


class Consistency(TypedDict):
    """Agreement of one person's two rounds; null if it is undefined."""

    images: int
    mean_absolute_difference: dict[str, float | None]
    """Difference by mark, in points of the 0-7 scale."""
    weighted_kappa: dict[str, float | None]


def measure_agreement(rows: Iterable[AnnotationRow]) -> Agreement:
    """Returns Krippendorff's alpha (interval level) of each mark over the images with two or more annotators.

    Alpha is 1 for perfect agreement, 0 for agreement by chance, and None if no image has two annotators or all
    marks are equal. Only first rounds count: a person's repeat says nothing about other people.
    """
    firsts = [row for row in rows if not row.get("round")]
    annotators = {name: i for i, name in enumerate(sorted({row["annotator"] for row in firsts}))}
    images: dict[tuple[str, int], int] = {}
    for row in firsts:
        images.setdefault((row["prompt_id"], row["sample_index"]), len(images))
    marks = np.full((len(MARKS), len(annotators), len(images)), np.nan)
    for row in firsts:
        column = images[row["prompt_id"], row["sample_index"]]
        marks[:, annotators[row["annotator"]], column] = marks_of(row)
    shared = (~np.isnan(marks[0])).sum(axis=0) >= 2
    return {
        "annotators": len(annotators),
        "images": len(images),
        "images_scored_by_several": int(shared.sum()),
        "krippendorff_alpha": {name: interval_alpha(marks[i]) for i, name in enumerate(MARKS)},
        "is_simulated": any(row["is_simulated"] for row in firsts),
    }


def interval_alpha(marks: np.ndarray) -> float | None:
    """Returns Krippendorff's alpha for interval data, 1 - D_o / D_e.

    D_o is the mean squared difference of marks within an image, D_e that of all marks (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability", section D with the interval metric). Images with fewer than two
    marks do not count. Shape: marks [annotators, images], NaN for a missing mark. None if fewer than two
    different marks count.
    """
    counts = (~np.isnan(marks)).sum(axis=0)
    marks, counts = marks[:, counts >= 2], counts[counts >= 2]
    values = marks[~np.isnan(marks)]
    if len(np.unique(values)) < 2:
        return None
    # Over ordered pairs of m marks the squared differences sum to 2 m^2 times their variance; the 2 cancels.
    observed = (counts**2 / (counts - 1) * np.nanvar(marks, axis=0)).sum() / len(values)
    expected = len(values) / (len(values) - 1) * values.var()
    return float(1 - observed / expected)


def write_agreement(rows: Iterable[AnnotationRow], out: Path) -> Agreement:
    """Writes `out/agreement.json` and returns its content."""
    figures = measure_agreement(rows)
    atomic_write_json(out / "agreement.json", figures)
    return figures


def measure_consistency(rows: Iterable[JudgementRow]) -> Consistency:
    """Compares one person's marks with their earlier marks of the images that they saw twice.

    Returns for each mark the mean absolute difference and the quadratically weighted kappa.
    """
    rounds: dict[tuple[str, int], dict[int, JudgementRow]] = defaultdict(dict)
    for row in rows:
        rounds[row["prompt_id"], row["sample_index"]][row["round"]] = row
    pairs = [(seen[0], seen[1]) for seen in rounds.values() if len(seen) == 2]
    figures: Consistency = {"images": len(pairs), "mean_absolute_difference": {}, "weighted_kappa": {}}
    found = np.array([[marks_of(row) for row in pair] for pair in pairs], dtype=float).reshape(-1, 2, len(MARKS))
    for name, marks in zip(MARKS, np.moveaxis(found, 2, 0), strict=True):
        distance = float(np.abs(marks[:, 0] - marks[:, 1]).mean()) if len(pairs) else None
        figures["mean_absolute_difference"][name] = distance
        figures["weighted_kappa"][name] = weighted_kappa(marks)
    return figures


def weighted_kappa(marks: np.ndarray) -> float | None:
    """Returns Cohen's kappa with quadratic weights for paired marks [N, 2] (Cohen 1968).

    Kappa is 1 minus the mean squared difference of the pairs over that of all first marks with all second marks;
    None if the latter is 0.
    """
    if not len(marks):
        return None
    expected = ((marks[:, :1] - marks[None, :, 1]) ** 2).mean()
    if expected == 0:
        return None
    return float(1 - ((marks[:, 0] - marks[:, 1]) ** 2).mean() / expected)
