"""Figures sent to Weights & Biases and MLflow: stand-ins of both packages' interfaces, which write down their calls."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.config.config_files import load_config
from rlhf.config.logging_config import LoggingConfig
from rlhf.errors import UserError
from rlhf.reports.trackers import check_packages, start_trackers

COMMON = """
import json, os, pathlib
FOLDER = pathlib.Path(__file__).parent
def note(*what):
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\\n")
def is_down():
    return (FOLDER / "down").exists()
"""
WANDB = """
from stand_in_common import is_down, note
class Error(Exception): pass
class Run:
    def __init__(self, run_id): self.id = run_id
    def log(self, figures, step):
        if is_down(): raise Error("no route to host")
        note("log", step, figures["reward"])
    def finish(self): note("finish")
def init(*, project, group, name, config, id, resume):
    if is_down(): raise Error("no route to host")
    note("init", project, group, name, config["seed"], id, resume)
    return Run(id or "new")
"""
MLFLOW = """
from types import SimpleNamespace
from stand_in_common import is_down, note
class MlflowException(Exception): pass
class MlflowClient:
    def __init__(self, tracking_uri): note("client", tracking_uri)
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): return "7"
    def create_run(self, experiment_id, run_name):
        note("create_run", experiment_id, run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    def update_run(self, run_id, status): note("update_run", run_id, status)
    def log_batch(self, run_id, metrics=(), params=()):
        if is_down(): raise MlflowException("503")
        note("log_batch", run_id, len(params), [[m.key, m.value, m.step] for m in metrics if m.key == "reward"])
    def set_terminated(self, run_id): note("set_terminated", run_id)
"""
ENTITIES = """
class Param:
    def __init__(self, key, value): self.key, self.value = key, value
class Metric:
    def __init__(self, key, value, timestamp, step): self.key, self.value, self.step = key, value, step
"""
LINES = [{"update": i, "reward": i / 10, "restarts/sampler/died": 0.0} for i in (1, 2, 3)]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with both packages."""
    folder = tmp_path / "packages"
    (folder / "mlflow").mkdir(parents=True)
    files = {"stand_in_common": COMMON, "wandb": WANDB, "mlflow/__init__": MLFLOW, "mlflow/entities": ENTITIES}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("stand_in_common", "wandb", "mlflow", "mlflow.entities"):
        sys.modules.pop(name, None)


def calls(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def test_each_update_is_sent_once_also_over_a_resume(stand_ins: Path, tmp_path: Path) -> None:
    config = LoggingConfig(wandb_project="paint", mlflow_uri="http://127.0.0.1:5000", experiment="holes")
    check_packages(config)
    out = tmp_path / "runs" / "first"
    for seen in (LINES[:1], LINES[:2]), (LINES,):
        trackers = start_trackers(config, out, {"seed": 4, "align": {"updates": 3, "eta": 1}})
        for lines in seen:
            assert [tracker.send(lines) for tracker in trackers] == [None, None]
        assert [tracker.finish() for tracker in trackers] == [None, None]
    wandb = [call for call in calls(stand_ins) if call[0] in ("init", "log", "finish")]
    begun = ["init", "paint", "holes", "runs/first", 4]
    assert wandb == [
        [*begun, None, "allow"],
        ["log", 1, 0.1],
        ["log", 2, 0.2],
        ["finish"],
        [*begun, "new", "allow"],
        ["log", 3, 0.3],
        ["finish"],
    ]
    mlflow = [call for call in calls(stand_ins) if call not in wandb]
    assert mlflow == [
        ["client", "http://127.0.0.1:5000"],
        ["create_run", "7", "runs/first"],
        ["log_batch", "m1", 3, []],
        ["log_batch", "m1", 0, [["reward", 0.1, 1]]],
        ["log_batch", "m1", 0, [["reward", 0.2, 2]]],
        ["set_terminated", "m1"],
        ["client", "http://127.0.0.1:5000"],
        ["update_run", "m1", "RUNNING"],
        ["log_batch", "m1", 0, [["reward", 0.3, 3]]],
        ["set_terminated", "m1"],
    ]


def test_a_service_that_fails_is_warned_of_once_and_gets_later_what_it_missed(stand_ins: Path, tmp_path: Path) -> None:
    (tracker,) = start_trackers(LoggingConfig(wandb_project="paint"), tmp_path / "run", {"seed": 0})
    (stand_ins / "down").touch()
    warning = tracker.send(LINES[:1])
    assert "wandb failed (no route to host); the run goes on" in (warning or "")
    assert tracker.send(LINES[:2]) is None
    (stand_ins / "down").unlink()
    assert tracker.send(LINES) is None
    assert [call[1] for call in calls(stand_ins) if call[0] == "log"] == [1, 2, 3]


def test_a_package_that_is_missing_is_named_before_anything_starts() -> None:
    check_packages(LoggingConfig())
    for key, package in (("wandb_project", "wandb"), ("mlflow_uri", "mlflow")):
        if importlib.util.find_spec(package):
            pytest.skip(f"{package} is installed here")
        with pytest.raises(UserError, match=rf"logging\.{key}: {package} is not installed; .*\[{package}\]"):
            check_packages(LoggingConfig(**{key: "x"}))


def test_a_password_in_the_address_is_refused_since_the_configuration_is_saved() -> None:
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD"):
        load_config(None, ("logging.mlflow_uri=http://me:secret@127.0.0.1:5000",))
