"""Sends the figures of a run to Weights & Biases and MLflow if they are configured; both packages are optional."""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pydantic import JsonValue

from rlhf.config.logging_config import LoggingConfig
from rlhf.errors import UserError
from rlhf.reports.metrics_log import Metrics
from rlhf.storage.atomic_files import atomic_write_json, read_json

Settings = Mapping[str, JsonValue]
"""Settings of a run by section."""


class Sent(TypedDict):
    """Progress of one service, as `tracking.json` holds it."""

    run_id: str | None
    """Id that the service gave the run; None before the first line."""
    update: int
    """Update of the last line that was sent."""


def check_packages(config: LoggingConfig) -> None:
    """Raises UserError if the package of a configured service is not installed."""
    wanted = {"wandb_project": ("wandb", config.wandb_project), "mlflow_uri": ("mlflow", config.mlflow_uri)}
    for key, (package, value) in wanted.items():
        if value is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"logging.{key}: {package} is not installed; pip install 'prefpaint-ray[{package}]'")


@dataclass(kw_only=True)
class Service:
    """Run that is open at a tracking service."""

    run_id: str
    send: Callable[[Metrics], None]
    """Sends the figures of one update."""
    finish: Callable[[], None]


class Tracker:
    """Sends each line of `metrics.jsonl` to a service once; `tracking.json` in the run folder holds the last one sent.

    A failure of the service gives one warning. Lines that it missed are sent again with the next line.
    """

    def __init__(self, name: str, open_run: Callable[[str | None], Service], errors: tuple, out: Path) -> None:
        """`open_run` takes the id of the run to resume, or None; `errors` are the exceptions of the service."""
        self._name, self._open, self._errors = name, open_run, (*errors, OSError, UserError)
        self._path = out / "tracking.json"
        self._service: Service | None = None
        self._sent: Sent | None = None
        self._has_failed = False

    def send(self, lines: Sequence[Metrics]) -> str | None:
        """Sends the lines that are new; returns the warning of the first failure."""
        return self._guard(lambda: self._send_new(lines))

    def finish(self) -> str | None:
        """Ends the run at the service."""
        service = self._service
        return None if service is None else self._guard(service.finish)

    def _send_new(self, lines: Sequence[Metrics]) -> None:
        if self._sent is None:
            self._sent = self._read().get(self._name, {"run_id": None, "update": 0})
        for line in lines:
            if line["update"] > self._sent["update"]:
                if self._service is None:
                    self._service = self._open(self._sent["run_id"])
                self._service.send(line)
                self._sent = {"run_id": self._service.run_id, "update": int(line["update"])}
                atomic_write_json(self._path, self._read() | {self._name: self._sent})

    def _read(self) -> dict[str, Sent]:
        return read_json(self._path, "remove it, and a new run begins there") if self._path.is_file() else {}

    def _guard(self, act: Callable[[], object]) -> str | None:
        try:
            act()
        except self._errors as error:
            if self._has_failed:
                return None
            self._has_failed = True
            return f"align: warning: {self._name} failed ({error}); the run goes on, metrics.jsonl has all figures"
        return None


def start_trackers(config: LoggingConfig, out: Path, settings: Settings) -> list[Tracker]:
    """Opens a tracker for each configured service; `settings` are the run's, by section."""
    trackers = []
    name = "/".join(out.resolve().parts[-2:])
    if config.wandb_project is not None:
        os.environ.setdefault("WANDB_SILENT", "true")  # Its output would overwrite the progress bar.
        import wandb

        open_run = _wandb(config.wandb_project, config.experiment, name, settings)
        trackers.append(Tracker("wandb", open_run, (wandb.Error,), out))
    if config.mlflow_uri is not None:
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
        )  # By default an unreachable server blocks for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        import mlflow

        open_run = _mlflow(config.mlflow_uri, config.experiment, name, settings)
        trackers.append(Tracker("mlflow", open_run, (mlflow.MlflowException,), out))
    return trackers


def _wandb(project: str, group: str | None, name: str, settings: Settings) -> Callable[[str | None], Service]:
    import wandb

    def open_run(run_id: str | None) -> Service:
        """Opens a new run, or the run with this id."""
        run = wandb.init(project=project, group=group, name=name, config=settings, id=run_id, resume="allow")

        def send(line: Metrics) -> None:
            """Sends the figures of one update."""
            run.log(line, step=line["update"])

        return Service(run_id=run.id, send=send, finish=run.finish)

    return open_run


def _mlflow(uri: str, experiment: str | None, name: str, settings: Settings) -> Callable[[str | None], Service]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    def open_run(run_id: str | None) -> Service:
        """Opens a new run, or the run with this id."""
        client = MlflowClient(tracking_uri=uri)
        if run_id is None:
            run_id = client.create_run(_experiment_id(client, experiment), run_name=name).info.run_id
            params = [Param(key, str(value)) for key, value in _flat(settings).items()]
            for start in range(0, len(params), 100):  # MLflow accepts at most 100 at once.
                client.log_batch(run_id, params=params[start : start + 100])
        else:
            client.update_run(run_id, status="RUNNING")

        def send(line: Metrics) -> None:
            """Sends the figures of one update."""
            at = time.time_ns() // 10**6
            client.log_batch(run_id, metrics=[Metric(k, float(v), at, line["update"]) for k, v in line.items()])

        return Service(run_id=run_id, send=send, finish=lambda: client.set_terminated(run_id))

    return open_run


def _flat(settings: Settings) -> dict[str, JsonValue]:
    """Returns the settings with keys `section.key`."""
    flat: dict[str, JsonValue] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _experiment_id(client: Any, name: str | None) -> str:
    """Returns the id of the experiment, which is created if it does not exist; MLflow's own default is 0."""
    if name is None:
        return "0"
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id
