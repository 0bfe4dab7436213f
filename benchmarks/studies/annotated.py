"""Loads annotated images for the studies."""

from pathlib import Path

import torch

from rlhf.data.annotated_images import AnnotatedImages, join_annotations
from rlhf.data.annotators import load_annotations, noiseless_scores
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.prompts import PromptTable


def load_annotated(prompts: Path, candidates: Path, annotations: Path) -> tuple[AnnotatedImages, torch.Tensor | None]:
    """Loads annotated images and, if all annotators are simulated, their scores without noise; otherwise None."""
    by_id = PromptTable(prompts)
    images, rows = CandidateTable(candidates, by_id), load_annotations(annotations)
    is_simulated = all(row["is_simulated"] for row in rows)
    truth = torch.from_numpy(noiseless_scores(by_id, images, rows)) if is_simulated else None
    return join_annotations(by_id, images, rows), truth
