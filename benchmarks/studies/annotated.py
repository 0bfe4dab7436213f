"""Loads annotated images for the studies."""

from pathlib import Path

import torch

from rlhf.data.annotated_images import AnnotatedImages, join_annotations
from rlhf.data.annotators import load_annotations, noiseless_scores
from rlhf.data.prompts import load_prompts
from rlhf.diffusion.candidates import load_candidates


def load_annotated(prompts: Path, candidates: Path, annotations: Path) -> tuple[AnnotatedImages, torch.Tensor | None]:
    """Loads annotated images and, if all annotators are simulated, their scores without noise; otherwise None."""
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images, rows = load_candidates(candidates, by_id), load_annotations(annotations)
    is_simulated = all(row["is_simulated"] for row in rows)
    truth = torch.from_numpy(noiseless_scores(by_id, images, rows)) if is_simulated else None
    return join_annotations(by_id, images, rows), truth
