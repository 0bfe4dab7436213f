"""Rows of the tables of prompts and annotations, by column."""

from datetime import datetime
from typing import NotRequired, TypedDict

from rlhf.storage.tables import ImageCell


class PromptRow(TypedDict):
    """A row of the table of prompts: encoded image and mask, a tenth of the size of a `Prompt`."""

    prompt_id: str
    image: ImageCell
    mask: ImageCell
    hole: str
    source: str
    photograph: str
    split: str
    caption: str


class MarkedCandidate(TypedDict):
    """Marks that one person gave one candidate."""

    prompt_id: str
    sample_index: int
    annotator: str
    structure: float
    texture: float
    overall: float


class AnnotationRow(MarkedCandidate):
    """A row of the table of annotations."""

    annotated_at: datetime | None
    """None if the time is unknown, as in imported data."""
    is_simulated: bool
    round: NotRequired[int]
    """1 if the person saw the candidate for the second time, otherwise 0; tables of simulated marks lack the column."""
    annotation_score: NotRequired[float]
    """Weighted total of the three marks, which `load_annotations` adds."""


class JudgementRow(MarkedCandidate):
    """Marks in the database of the annotation page."""

    round: int
    judged_at: float
    """Unix time in seconds."""


def marks_of(row: MarkedCandidate) -> tuple[float, float, float]:
    """Returns structure, texture and overall, each 0-7."""
    return row["structure"], row["texture"], row["overall"]
