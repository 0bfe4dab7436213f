"""The names of a service: which policy answers, what a rollback brings back, and what no crash or race can lose."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf.commands.cli import app
from rlhf.errors import UserError
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy, read_catalogue, roll_back, write_catalogue

OLD, NEW = (
    ServedPolicy(folder=Path("/a"), version="10-aaaaaaaa"),
    ServedPolicy(folder=Path("/b"), version="20-bbbbbbbb"),
)


def test_a_catalogue_read_again_is_the_one_that_was_written(tmp_path: Path):
    name = ServedName(base="tiny", current=OLD, canary=NEW, canary_share=0.25)
    write_catalogue(Catalogue(models={"aligned": name}), tmp_path / "names.json")
    assert read_catalogue(tmp_path / "names.json").models == {"aligned": name}


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ("{", "damaged"),
        ([], "models|catalogue|dictionary"),
        ({"schema_version": 9}, "schema 9"),
        ({"models": {"a/b": {"base": "tiny"}}}, "models.a/b"),
        ({"models": {"a": {"base": "tiny", "canary_share": 2}}}, "canary_share"),
    ],
)
def test_a_damaged_catalogue_is_refused_by_name(tmp_path: Path, record: object, named: str):
    file = tmp_path / "names.json"
    file.write_text(record if isinstance(record, str) else json.dumps(record))
    with pytest.raises(UserError, match=rf"names\.json: .*({named})"):
        read_catalogue(file)


RUN_AND_TELL = """
import sys
from rlhf.commands.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print("heavy:", {"torch", "ray", "diffusers"} & set(sys.modules))
"""


def test_a_rollback_drops_the_canary_then_brings_the_previous_back_then_has_nothing(tmp_path: Path) -> None:
    old, new, trial = (ServedPolicy(folder=tmp_path / v, version=f"{v}-aaaaaaaa") for v in ("10", "20", "30"))
    name = ServedName(base="tiny", current=new, previous=old).on_trial(trial, 0.5)
    write_catalogue(Catalogue(models={"aligned": name, "other": name}), tmp_path / "names.json")
    assert roll_back(tmp_path / "names.json", "aligned")[1] == ServedName(base="tiny", current=new, previous=old)
    assert roll_back(tmp_path / "names.json", "aligned")[1] == ServedName(base="tiny", current=old)
    with pytest.raises(UserError, match="no canary and no previous policy"):
        roll_back(tmp_path / "names.json", "aligned")
    with pytest.raises(UserError, match="no name 'absent'; it holds aligned, other"):
        roll_back(tmp_path / "names.json", "absent")
    assert read_catalogue(tmp_path / "names.json").models["other"] == name


def test_a_rollback_and_a_list_read_no_weights(tmp_path: Path) -> None:
    name = ServedName(base="tiny", current=ServedPolicy(folder=tmp_path / "gone", version="10-aaaaaaaa"))
    write_catalogue(Catalogue(models={"aligned": name.succeeded_by(ServedPolicy())}), tmp_path / "names.json")
    for command in (["models"], ["rollback", "aligned"]):
        arguments = [sys.executable, "-c", RUN_AND_TELL, *command, "--catalogue", tmp_path / "names.json"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert "10-aaaaaaaa" in done.stdout
        assert done.stdout.strip().endswith("heavy: set()")


PUT_NAMES = """
import sys
from pathlib import Path
from rlhf.promotion.catalogue import ServedName, locked, read_or_new, write_catalogue
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    with locked(Path(sys.argv[1])):
        names = read_or_new(Path(sys.argv[1]))
        write_catalogue(names.with_name(f"{sys.argv[2]}-{number % 50}", ServedName(base="tiny")), Path(sys.argv[1]))
"""


def start_putting(catalogue: Path, prefixes: str, count: int) -> list[subprocess.Popen]:
    """Starts processes that put `count` names each, all at once."""
    command = [sys.executable, "-c", PUT_NAMES, catalogue]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*command, prefix, str(count)], **pipes) for prefix in prefixes]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    return processes


def test_changes_at_the_same_time_lose_no_name(tmp_path: Path) -> None:
    processes = start_putting(tmp_path / "names.json", "abc", 50)
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(read_catalogue(tmp_path / "names.json").models) == 150


def test_kill_9_at_any_moment_leaves_a_whole_catalogue_and_no_lock(tmp_path: Path) -> None:
    catalogue = tmp_path / "names.json"
    write_catalogue(Catalogue(), catalogue)
    known: set[str] = set()
    for attempt in range(4):
        (process,) = start_putting(catalogue, f"{attempt}", 100_000)
        try:
            while len(read_catalogue(catalogue).models.keys() - known) <= 3 * attempt:  # As a service reads meanwhile.
                assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        names = set(read_catalogue(catalogue).models)
        assert names > known, "what was written before is there"
        known = names
    (last,) = start_putting(catalogue, "x", 1)
    assert last.wait(30) == 0, "the lock went with the process"


def test_the_list_tells_every_policy_of_a_name_with_its_share(tmp_path: Path) -> None:
    old, new = (ServedPolicy(folder=tmp_path / v, version=f"{v}-aaaaaaaa") for v in ("10", "20"))
    name = ServedName(base="tiny").succeeded_by(old).on_trial(new, 0.1)
    write_catalogue(Catalogue(models={"aligned": name}), tmp_path / "names.json")
    done = CliRunner().invoke(app, ["models", "--catalogue", str(tmp_path / "names.json")])
    rows = [re.split(r"  +", line) for line in done.output.strip().splitlines()[1:]]
    assert rows == [
        ["aligned", "tiny", "current", old.version, "90%", str(old.folder)],
        ["aligned", "tiny", "canary", new.version, "10%", str(new.folder)],
        ["aligned", "tiny", "previous", "0", "0%", "(the base model)"],
    ]
