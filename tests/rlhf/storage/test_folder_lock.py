"""One command at a time writes to a folder."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import rlhf

from rlhf.errors import UserError
from rlhf.storage.folder_lock import hold_folder
from rlhf.storage.url_path import as_path

HOLDER = """
import sys, time
from pathlib import Path
from rlhf.storage.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""
COMMANDS = {
    "align": ["--prompts", "prompts"],
    "candidates": ["--prompts", "prompts"],
    "evaluate": ["--prompts", "prompts", "--reward", "reward"],
    "reward": ["prompts", "candidates", "annotations"],
    "extend": ["photo.png"],
    "pretrain": ["--images", "photographs"],
    "demo": [],
    "rounds": ["--images", "photographs", "--eval-images", "others", "--annotations-per-round", "1"],
}


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the folder `run`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_command_on_a_folder_is_refused(command: str, holder: subprocess.Popen, tmp_path: Path) -> None:
    done = rlhf(command, *COMMANDS[command], "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'run'}: another command is writing to it")
    assert "choose another --out" in done.stderr


def test_a_dead_command_holds_nothing(holder: subprocess.Popen, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another command"), hold_folder(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with hold_folder(tmp_path / "run"):
        (tmp_path / "run" / "result").write_text("1")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_a_folder_into_which_nothing_came_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bad input"), hold_folder(tmp_path / "new"):
        raise UserError("bad input")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with hold_folder(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be written"), hold_folder(tmp_path / "file" / "run"):
        pass


def test_a_url_is_not_locked() -> None:
    with hold_folder(as_path("s3://bucket/run")), hold_folder(as_path("s3://bucket/run")):
        pass
