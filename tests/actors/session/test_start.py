"""Ray that does not start is said to, with the remedy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import rlhf_process

from actors.session.start import describe_failure, describe_object_store, start_twice
from rlhf.errors import UserError


def test_a_start_that_ran_out_of_time_is_tried_once_more_and_leaves_nothing_behind() -> None:
    started: list[subprocess.Popen] = []

    def init() -> None:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        if len(started) == 1:
            raise Exception("The current node timed out during startup.")

    [process] = start_twice(init)
    assert process.pid == started[1].pid
    assert started[0].wait(10) < 0
    started[1].kill()


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionError, TimeoutError])
def test_a_start_that_fails_twice_names_room_and_logs(kind: type[Exception]) -> None:
    tries = []

    def init() -> None:
        tries.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise kind("timed out")

    with pytest.raises(UserError, match=r"does not start.*timed out, twice; free are .*/dev/shm.*session_latest/logs"):
        start_twice(init)
    assert [process.wait(10) < 0 for process in tries] == [True, True]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /x"), "too long.*set RAY_TMPDIR to a short one"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied.*set RAY_TMPDIR"),
        (OSError(28, "No space left on device"), "No space left.*has room"),
        (ValueError("the minimum allowed is 75 MB"), "75 MB; free memory.*/dev/shm"),
    ],
)
def test_what_no_second_try_mends_is_tried_once(error: Exception, remedy: str) -> None:
    tries = []

    def init() -> None:
        tries.append(1)
        raise error

    with pytest.raises(UserError, match=remedy):
        start_twice(init)
    assert tries == [1]
    assert describe_failure(error)


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_a_temporary_folder_with_a_long_path_ends_a_command_with_the_remedy(command: str, tmp_path: Path) -> None:
    long = tmp_path / ("a" * 90)
    long.mkdir()
    words = [command] if command == "doctor" else [command, "--port", "18765"]
    done = rlhf_process(*words, env={**os.environ, "RAY_TMPDIR": str(long)})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: Ray does not start")
    assert "set RAY_TMPDIR to a short one" in done.stderr
    assert "Traceback" not in done.stderr


def test_objects_that_ray_keeps_on_disk_are_told_with_the_remedy() -> None:
    warning = describe_object_store(["raylet", "--plasma_directory=/tmp", "--x"])
    assert warning is not None
    assert re.fullmatch(r"warning: /dev/shm has \d+ MB free, .* keeps them in /tmp, .*--shm-size.*", warning)
    assert describe_object_store(["raylet", "--plasma_directory=/dev/shm"]) is None
    assert describe_object_store(["gcs_server"]) is None
