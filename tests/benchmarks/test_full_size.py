"""The whole method at full size: its models, what it measures of processes, and a tiny run of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.full_size.__main__ import format_table, main, measure_stage, run
from benchmarks.full_size.process_memory import title_of
from benchmarks.full_size.stages import SIZES, stage_commands
from benchmarks.gpu.full_size_models import CLIP_TEXT, CLIP_VISION, SD, build_vision_tower
from rlhf.errors import UserError

HOLD = """
import subprocess, sys, time
held = bytearray({megabytes} << 20)
if {megabytes} == 100:
    subprocess.run([sys.executable, "-c", {child!r}], check=True)
else:
    time.sleep(1.5)
"""


def count(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_encoders_and_vae_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(AutoencoderKL.from_config(dict(SD.vae))) == pytest.approx(83.65, abs=0.01)
        assert count(CLIPTextModel(CLIPTextConfig(**CLIP_TEXT))) == pytest.approx(123.06, abs=0.01)
        assert count(build_vision_tower(CLIP_VISION)) == pytest.approx(303.18, abs=0.01)


def test_every_process_of_a_stage_is_measured(tmp_path: Path) -> None:
    code = HOLD.format(megabytes=100, child=HOLD.format(megabytes=200, child=""))
    found = measure_stage([sys.executable, "-c", code], tmp_path / "log", is_service=False, px=64)
    peaks = list(found["peak_gb"].values())
    assert found["together_gb"] > 0.3, "both live at once"
    assert max(peaks) < found["together_gb"], "neither holds the memory of both"
    assert found["cpu_s"] > 0


def test_processes_are_named_by_what_they_do() -> None:
    names = {
        "ray::RolloutSampler": ["ray::RolloutSampler.rollout"],
        "rlhf align": ["/bin/python", "-m", "rlhf", "align", "--out", "x"],
        "raylet": ["/lib/ray/raylet", "--port=0"],
        "log_monitor.py": ["/bin/python", "-u", "/lib/ray/log_monitor.py", "--x"],
    }
    assert {title_of(words) for words in names.values()} == set(names)


def test_a_failed_stage_is_told_with_its_log_and_finished_ones_are_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('what was wrong'); sys.exit(3)"
    with pytest.raises(UserError, match=r"(?s)exit code 3.*what was wrong"):
        measure_stage([sys.executable, "-c", code], tmp_path / "log", is_service=False, px=64)
    done = {"s": 1.0, "cpu_s": 2.0, "together_gb": 3.0, "peak_gb": {"rlhf align": 2.5, "gcs_server": 0.01}}
    stages = {name: done for name in ["random weights", *stage_commands(tmp_path)]}
    (tmp_path / "full_size.json").write_text(json.dumps({"model": "tiny", "machine": {}, "stages": stages}))
    run(tmp_path, "tiny")
    assert "| export | 1 | 2 | 3.0 | rlhf align 2.5 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--model", "full"])
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_a_tiny_model_goes_through_all_stages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.full_size", "--out", str(tmp_path), "--model", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "full_size.json").read_text())
    assert list(results["stages"]) == ["random weights", *stage_commands(tmp_path)]
    learner = results["stages"]["align, full: update"]["peak_gb"]
    assert any("Worker" in title for title in learner), "the learner is told apart from the driver"
    assert done.stdout == format_table(results) + "\n"
    assert SIZES["tiny"].px == 64
