"""Annotated photographs of flat noise whose score is the hole's brightness, and bare scores without pictures."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_parts import write_prompts

from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import Prompt
from rlhf.storage.images import encode_png, tensor_to_image
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, MARKS, PAGE_ANNOTATIONS, image_cell, write_table

SAMPLES = 10
STUDY_CONFIG = RewardConfig(feature_dim=12, epochs=4, micro_batch_size=64, decorrelation=1.0)
"""Settings of a reward that a study fits within seconds."""
Candidates = dict[tuple[str, int], torch.Tensor]


def make_world(photographs: int = 24, size: int = 32) -> tuple[dict[str, Prompt], Candidates, list[dict[str, Any]]]:
    """Prompts, candidates and annotations: brighter holes score higher; every third image is scored twice."""
    rng = np.random.default_rng(0)
    prompts, candidates, annotations = {}, {}, []
    for number in range(photographs):
        name = f"photograph-{number:02d}"
        image = torch.from_numpy(rng.normal(0, 0.2, (3, size, size))).float().clamp(-1, 1)
        mask = torch.zeros(1, size, size)
        mask[:, 8:24, 8:24] = 1
        hole = ("box", "brush")[number % 2]
        prompts[name] = Prompt(
            prompt_id=name, photograph=f"{name}.png", source="s", hole=hole, split="train", image=image, mask=mask
        )
        for sample in range(SAMPLES):
            brightness = rng.uniform(-0.8, 0.8)
            candidates[name, sample] = (image + mask * (brightness + nuisance(rng, size))).clamp(-1, 1)
            for annotator in range(2 if sample % 3 == 0 else 1):
                score = 3.5 + 3 * brightness + rng.normal(0, 0.2) + 0.5 * annotator
                annotations.append(annotation(name, sample, f"simulated-{annotator}", score))
    return prompts, candidates, annotations


def nuisance(rng: np.random.Generator, size: int) -> torch.Tensor:
    """A tint, a slope and grain, all of mean 0: what differs between fills and does not count."""
    tint = rng.normal(0, 0.3, (3, 1, 1))
    slope = rng.normal(0, 0.4) * np.linspace(-1, 1, size)[None, None, :]
    grain = rng.uniform(0, 0.4) * rng.normal(0, 1, (1, size, size))
    return torch.from_numpy(tint - tint.mean() + slope + grain).float()


def annotation(prompt_id: str, sample: int, annotator: str, score: float) -> dict[str, Any]:
    row = {"prompt_id": prompt_id, "sample_index": sample, "annotator": annotator}
    marks = dict.fromkeys(("structure", "texture", "overall", "annotation_score"), score)
    return row | marks | {"is_simulated": True}


def bare_scores(keys: Sequence[tuple[str, int]], scores: torch.Tensor) -> AnnotatedImages:
    """Scores [N] of blank images; a photograph per prompt."""
    return AnnotatedImages(
        pictures=Pictures({}, {}),
        scores=scores,
        marks=torch.zeros(len(keys), 3),
        keys=list(keys),
        photographs=[prompt_id for prompt_id, _ in keys],
    )


def write_world(
    folder: Path, prompts: dict[str, Prompt], candidates: Candidates, annotations: list[dict[str, Any]]
) -> list[str]:
    """The three stage folders, as `rlhf reward` takes them; scores are cut to 0-7. Returns their paths."""
    paths = [folder / name for name in ("prompts", "candidates", "annotations")]
    write_prompts(list(prompts.values()), paths[0])
    plan = {"seed": 0, "policy_version": 0, "num_inference_steps": 1, "eta": 0.0, "first_step": 0}
    rows = [
        plan | {"prompt_id": p, "sample_index": s, "image": image_cell(encode_png(tensor_to_image(image)), "c.png")}
        for (p, s), image in candidates.items()
    ]
    write_table(rows, CANDIDATES, paths[1] / "candidates.parquet")
    cut = [row | {mark: min(max(row[mark], 0.0), 7.0) for mark in MARKS} for row in annotations]
    write_annotations(cut, paths[2])
    return [str(path) for path in paths]


def write_annotations(rows: list[dict[str, Any]], folder: Path) -> None:
    """Rows as they are; with the column `round` where the first has it."""
    schema = PAGE_ANNOTATIONS if "round" in rows[0] else ANNOTATIONS
    stamp = {"annotated_at": datetime(2026, 1, 1, tzinfo=UTC)}
    write_table([row | stamp for row in rows], schema, folder / "annotations.parquet")
