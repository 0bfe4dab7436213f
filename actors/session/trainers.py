"""What all runs of Ray Train have in common: where it keeps its files, and how its failures are told."""

from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from actors.pool.worker_pool import find_user_error
from rlhf.errors import UserError
from rlhf.storage.url_path import UrlPath


def storage_of(out: Path) -> dict[str, Any]:
    """Returns the arguments of Ray Train's RunConfig for files below a folder or URL."""
    if isinstance(out, UrlPath):
        return {"storage_path": out.key, "storage_filesystem": out.filesystem}
    return {"storage_path": str(out.resolve())}


def fit(trainer: TorchTrainer) -> None:
    """Runs the workers, whose function returns the text of a UserError, or None; raises that UserError.

    A UserError that ended a worker is raised itself.
    """
    try:
        complaint = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if (cause := find_user_error(failure)) is not None:
                raise cause from error
        raise
    if complaint is not None:
        raise UserError(complaint)
