"""The folder of an alignment, as far as others must know it: whether the run has begun."""

from pathlib import Path

LEARNER_FOLDER = "learner"
"""Folder in which Ray Train keeps a run's state and checkpoints; it appears when the learner starts."""


def is_begun(run: Path) -> bool:
    """Whether the alignment in `run` has started its learner, so that it can be resumed and must not be mixed."""
    return (run / LEARNER_FOLDER).exists()
