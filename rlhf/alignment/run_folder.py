"""The folder of an alignment, as far as others must know it: whether the run has begun, and whether it shall end."""

from pathlib import Path

from rlhf.storage.atomic_files import atomic_write_text

LEARNER_FOLDER = "learner"
"""Folder in which Ray Train keeps a run's state and checkpoints; it appears when the learner starts."""

STOP_FILE = "stop"
"""File that asks the learner to end the run; it lies in the run's folder, which driver and learner both see."""


def is_begun(run: Path) -> bool:
    """Whether the alignment in `run` has started its learner, so that it can be resumed and must not be mixed."""
    return (run / LEARNER_FOLDER).exists()


def ask_to_end(run: Path) -> None:
    """Asks the run to end after the update in work, with a checkpoint."""
    atomic_write_text(run / STOP_FILE, "")


def is_asked_to_end(run: Path) -> bool:
    """Whether the run was asked to end."""
    return (run / STOP_FILE).exists()


def withdraw_request(run: Path) -> None:
    """Lets the run go on; a request of an earlier process is then forgotten."""
    (run / STOP_FILE).unlink(missing_ok=True)
