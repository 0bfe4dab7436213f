import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import rlhf, rlhf_process
from small_parts import save_small_reward, small_prompts, write_prompts


def test_help_names_every_stage_and_imports_nothing_heavy() -> None:
    script = "import sys\nfrom rlhf.commands.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
    script += "print({'torch', 'ray', 'diffusers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")
    for stage in ("prompts", "candidates", "annotate", "reward", "align", "evaluate", "serve", "demo"):
        assert stage in done.stdout


@pytest.mark.parametrize(("own", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(own: dict[str, str], policy: str) -> None:
    script = "import os, sys\nfrom rlhf.commands.cli import main\nsys.argv[1:] = ['--help']\n"
    script += "try:\n    main()\nfinally:\n    print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | own
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-1] == policy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompts", "--images", "nowhere", "--out", "o"], ["nowhere", "no such folder"]),
        (["prompts", "--images", ".", "--out", "o"], ["no photographs"]),
        (["prompts", "--images", ".", "--out", "o", "--set", "prompts.crop=3"], ["prompts.crop", "did you mean"]),
        (["prompts", "--images", ".", "--out", "o", "--config", "absent.yaml"], ["absent.yaml"]),
        (["candidates", "--prompts", ".", "--out", "o"], ["no Parquet files"]),
        (["annotate", "nowhere", "--out", "o"], ["nowhere", "no such folder"]),
        (["annotate", ".", "--out", "o"], ["no copy of the prompts", "--prompts"]),
        (["annotate", ".", "--prompts", ".", "--simulated", "--out", "o"], ["no Parquet files"]),
        (["align", "--prompts", ".", "--reward", ".", "--out", "o", "--set", "align.micro_batch_size=5"], ["multiple"]),
        (["evaluate", "--prompts", ".", "--reward", ".", "--run", ".", "--out", "o"], ["no complete policy"]),
        (["report", "."], ["evaluation"]),
        (["export", "nowhere", "--out", "o"], ["nowhere", "manifest"]),
        (["demo", "--images", ".", "--out", "o"], ["--eval-images"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    done = rlhf(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_process_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = rlhf_process("prompts", "--images", "nowhere", "--out", "o", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere")
    assert done.stderr.count("\n") == 1


def test_an_out_folder_that_is_a_file_is_an_error_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "out").write_text("")
    done = rlhf("prompts", "--images", tmp_path / "photos", "--out", tmp_path / "out" / "x")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_align_refuses_bad_input_before_a_process_starts(tmp_path: Path) -> None:
    prompts, reward = write_prompts(small_prompts(4), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    done = rlhf("align", "--prompts", prompts, "--reward", reward, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "4 training prompts" in done.stderr
    (reward / "head.safetensors").write_bytes(b"")
    few = ["--set", "align.prompts_per_update=4", "--set", "align.samples_per_prompt=4"]
    done = rlhf("align", "--prompts", prompts, "--reward", reward, "--out", tmp_path / "run2", *few)
    assert done.returncode == 2
    assert "reward" in done.stderr
