"""Simulated annotators: the gold judge's utility with a bias and noise for each annotator.

They see the filled picture and the hole, not the hidden original. Their marks replace people's marks in tests and in
the demo; every table and report says so.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rlhf.config.run_config import AnnotatorsConfig
from rlhf.data.agreement import write_agreement
from rlhf.data.annotated_images import annotations_of, measure_scores, score_columns
from rlhf.data.candidate_table import Key
from rlhf.data.gold_judge import gold_utility
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import AnyPrompt
from rlhf.data.rows import AnnotationRow
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.tables import ANNOTATIONS, PAGE_ANNOTATIONS, read_table, write_table

UTILITY_RANGE = (0.05, 0.85)
"""Utilities of the marks 0 and 7; fixed before any policy was aligned."""
TOTAL_WEIGHTS = {"structure": 0.15, "texture": 0.15, "overall": 0.70}
"""Weights of the three marks in the total (PrefPaint, appendix A)."""
PIXELS_AT_ONCE = 2**18
"""Pixels that are judged at once; the intermediate results of more do not fit the processor's caches."""


def to_mark(utility: np.ndarray) -> np.ndarray:
    """Maps utility to a mark on the 0-7 scale, unrounded."""
    low, high = UTILITY_RANGE
    return 7.0 * np.clip((utility - low) / (high - low), 0.0, 1.0)


def simulate_annotations(
    prompts: Mapping[str, AnyPrompt],
    candidates: Mapping[Key, torch.Tensor],
    out: Path,
    config: AnnotatorsConfig,
    *,
    seed: int,
    keys: Sequence[Key] | None = None,
) -> int:
    """Scores candidates with whole marks 0-7 in `out/annotations.parquet` and returns the number of rows.

    The candidates are those of `keys`, in that order; by default all.

    Each annotator has a constant bias, drawn once; each mark adds fresh noise, which depends on the lowest
    `sample_index`. `marks_per_candidate` annotators score every candidate, so the noise can be measured. Their
    agreement goes to `out/agreement.json`.
    """
    rng = np.random.default_rng([seed, 11])
    bias = rng.normal(0.0, config.bias_sd, size=config.count)
    keys = list(candidates) if keys is None else keys
    first = min(sample_index for _, sample_index in keys)
    rng = np.random.default_rng([seed, 11, first]) if first else rng
    utility = _utilities(prompts, candidates, keys)
    rows: list[AnnotationRow] = []
    now = datetime.now(UTC)
    for index, key in enumerate(keys):
        for annotator in rng.permutation(config.count)[: config.marks_per_candidate]:
            marks = to_mark(utility[index]) + bias[annotator] + rng.normal(0.0, config.noise_sd, size=3)
            rows.append(_annotation(key, f"simulated-{annotator}", np.clip(np.round(marks), 0, 7).tolist(), now))
    write_table(rows, ANNOTATIONS, out / "annotations.parquet")
    write_agreement(rows, out)
    return len(rows)


def _annotation(key: tuple[str, int], annotator: str, marks: list[float], now: datetime) -> AnnotationRow:
    structure, texture, overall = marks
    return {
        "prompt_id": key[0],
        "sample_index": key[1],
        "annotator": annotator,
        "annotated_at": now,
        "structure": structure,
        "texture": texture,
        "overall": overall,
        "is_simulated": True,
    }


def _utilities(
    prompts: Mapping[str, AnyPrompt], candidates: Mapping[Key, torch.Tensor], keys: Sequence[Key]
) -> np.ndarray:
    """Returns utilities [N, 3]: structure, texture, overall."""
    judged: dict[Key, np.ndarray] = {}
    with progress_bar(stage="gold judge", total=len(keys)) as bar:
        for batch, images, masks in Pictures(prompts, candidates).stream(keys, PIXELS_AT_ONCE):
            utility = gold_utility(images, masks)
            rows = torch.stack([utility.structure, utility.texture, utility.overall], dim=1).numpy()
            judged |= dict(zip(batch, rows, strict=True))
            bar.update(len(batch))
    return np.stack([judged[key] for key in keys])


def noiseless_scores(
    prompts: Mapping[str, AnyPrompt], candidates: Mapping[Key, torch.Tensor], annotations: list[AnnotationRow]
) -> np.ndarray:
    """Returns simulated annotators' scores without their noise, [N], normalised as the noisy scores are.

    Rows are the annotations that have a candidate, in the order of `join_annotations`. The mean bias stays in:
    scores have no other origin, so without it every error would hold the same constant.
    """
    normalisation = measure_scores(prompts, candidates, annotations)
    rows = annotations_of(candidates, annotations)
    keys = sorted({(r["prompt_id"], r["sample_index"]) for r in rows})
    marks = to_mark(_utilities(prompts, candidates, keys))
    with_totals = np.column_stack([marks, marks @ np.array(list(TOTAL_WEIGHTS.values()))])
    marks_of = dict(zip(keys, with_totals, strict=True))
    families = [(prompts[r["prompt_id"]].source, prompts[r["prompt_id"]].hole) for r in rows]
    truth = np.stack([marks_of[r["prompt_id"], r["sample_index"]] for r in rows])
    # No annotator of that name was measured, so no bias is subtracted.
    scores = normalisation.apply(truth, families, ["nobody"] * len(rows))[:, 3]
    return scores + np.mean(normalisation.apply(*score_columns(prompts, rows))[:, 3] - scores)


def load_annotations(folder: Path) -> list[AnnotationRow]:
    """Loads annotation rows with `annotation_score`, the weighted total of the three marks, and `round` (default 0).

    Raises UserError with the row if a cell is empty, a mark is not finite or outside 0-7, or if an annotator judges a
    candidate twice in one round.
    """
    rows = read_table(folder, PAGE_ANNOTATIONS, optional=("round",))
    first_of: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(rows):
        for column in TOTAL_WEIGHTS:
            mark = row[column]
            if not 0 <= mark <= 7:
                raise UserError(
                    f"{folder}: row {number} (prompt {row['prompt_id']}): {column} is {mark}, not within 0-7; "
                    "mend or remove the row"
                )
        row["annotation_score"] = sum(weight * row[column] for column, weight in TOTAL_WEIGHTS.items())
        row["round"] = row["round"] or 0
        judged = tuple(row[column] for column in ("annotator", "prompt_id", "sample_index", "round"))
        first = first_of.setdefault(judged, number)
        if first != number:
            raise UserError(
                f"{folder}: row {number} (prompt {row['prompt_id']}, sample {row['sample_index']}, annotator "
                f"{row['annotator']}) repeats row {first}; remove one, or number the repeats in a column `round`"
            )
    return cast(list[AnnotationRow], rows)
