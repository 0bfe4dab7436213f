"""The session on one GPU, without a GPU: every part ends by itself, and none takes another's result with it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.gpu.session import WHOLE_S, SessionPart, colocated_settings, list_parts, run_session
from rlhf.config.config_files import load_config


def test_parts_that_fail_or_take_too_long_stop_no_other_and_all_end_in_time(tmp_path: Path) -> None:
    def part(name: str, code: str, limit_s: float, result: Path | None = None) -> SessionPart:
        return SessionPart(name=name, commands=[["-c", code]], limit_s=limit_s, result=result)

    file = tmp_path / "figures.json"
    seen = f"import json, pathlib; pathlib.Path({str(file)!r}).write_text(json.dumps({{'ratio_error': 0.0}}))"
    parts = [
        part("fails", "print('what was wrong'); raise SystemExit(3)", 60),
        part("hangs", "import time; time.sleep(600)", 0.3),
        part("measures", seen, 60, file),
        part("fills the time", "import time; time.sleep(600)", 600),
        part("is too late", seen, 60, file),
    ]
    started = time.monotonic()
    ends = run_session(parts, tmp_path, 6.0)
    assert time.monotonic() - started < 60
    assert {name: end["ended"] for name, end in ends.items()} == {
        "fails": "exit code 3",
        "hangs": "took too long",
        "measures": "done",
        "fills the time": "took too long",
        "is too late": "not begun: no time was left",
    }
    assert ends["measures"]["result"] == {"ratio_error": 0.0}
    assert "what was wrong" in ends["fails"]["last_words"]
    assert json.loads((tmp_path / "session.json").read_text()) == ends


def test_a_session_is_over_within_8_minutes_and_begins_with_an_update_over_nccl(tmp_path: Path) -> None:
    parts = list_parts(tmp_path, is_rehearsal=False)
    assert WHOLE_S + 10 <= 480
    assert parts[0].name == "sd_training"
    assert all("full" in part.commands[0] for part in parts)
    assert all("tiny" in part.commands[0] for part in list_parts(tmp_path, is_rehearsal=True))


def test_the_roles_of_the_colocated_step_take_turns(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(colocated_settings(tmp_path, 512)))
    config = load_config(tmp_path / "run.yaml")
    assert config.cluster.colocate is True
    assert config.prompts.size_px == 512


@pytest.mark.ray
@pytest.mark.slow
def test_every_part_of_a_rehearsal_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.session", "--out", str(tmp_path), "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    ends = json.loads((tmp_path / "session.json").read_text())
    assert list(ends) == [part.name for part in list_parts(tmp_path, is_rehearsal=True)]
    for precision in ("bf16", "fp32"):
        assert ends[f"ratio before the update, {precision}"]["result"]["ratio_error"] < 1e-5
    assert len(list((tmp_path / "colocated" / "align" / "profile").iterdir())) == 2
