"""Settings of the services that record a run's metrics."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from rlhf.config.config_types import Section


def _without_password(uri: str | None) -> str | None:
    if uri is not None and urlsplit(uri).password is not None:
        raise ValueError("keep passwords out; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return uri


class LoggingConfig(Section):
    """Destinations of metrics beside `metrics.jsonl`, TensorBoard and Ray's metrics."""

    wandb_project: str | None = None
    """Weights & Biases: the project; needs the extra `wandb` and WANDB_API_KEY or `wandb login`."""
    mlflow_uri: Annotated[str | None, AfterValidator(_without_password)] = None
    """MLflow: address of the tracking server; needs the extra `mlflow`."""
    experiment: str | None = None
    """MLflow's experiment, the group in Weights & Biases."""
