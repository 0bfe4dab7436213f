"""The Slurm script, run with stand-ins for Slurm's programs, Ray and the alignment."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import wait_for
from typer.main import get_command

import rlhf
from actors.placement import ROLES, resources_of
from rlhf.commands.cli import app
from rlhf.commands.cluster_shell import Checkout, command_problems
from rlhf.config.config_files import load_config

ROOT = Path(rlhf.__file__).parents[1]
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
# Each notes its arguments. `srun` lives as long as Ray does; `python -` has seen all nodes join.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >>log; [ "$1" = requeue ] || printf "n1\\nn2\\n"',
    "srun": 'echo "srun $*" >>log; [ ! -e ray-fails ] || exit 1; echo $$ >>steps; exec sleep 1000',
    "python": """if [ "$1" = - ]; then [ ! -e ray-fails ] || sleep 1000; exit 0; fi
        echo "python $*" >>log
        trap 'exit 75' USR1; [ ! -e driver-hangs ] || { touch hanging; while :; do sleep 0.1; done; }
        exit $(cat driver-code)""",
}
JOB = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "96", "RAY_AUTH_TOKEN": "secret"}


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """A folder to submit from."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    (tmp_path / "driver-code").write_text("0")
    return tmp_path


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    own = {"PATH": f"{folder}:{os.environ['PATH']}", **JOB, **environment}
    return subprocess.Popen(["bash", SCRIPT], cwd=folder, env=own, stderr=subprocess.PIPE, text=True)


def commands(folder: Path, program: str) -> list[str]:
    return [line for line in (folder / "log").read_text().splitlines() if line.startswith(program)]


def steps_are_over(folder: Path) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in (folder / "steps").read_text().split())


def test_each_node_gets_ray_with_the_roles_that_the_run_file_asks_for(submitted: Path) -> None:
    job = start(submitted, SLURM_GPUS_ON_NODE="8")
    assert "secret" not in job.communicate()[1]
    assert job.returncode == 0
    head, worker = sorted(commands(submitted, "srun"), key=lambda line: "--head" not in line)
    assert "--nodelist=n1" in head
    assert "--nodelist=n2" in worker
    assert "--address=n1:6379" in worker
    checkout = Checkout(root=ROOT, rlhf=get_command(app))
    for line in (head, worker):
        command, _, roles = line[line.index("ray start") :].partition(" --resources=")
        assert command_problems(f"{command} --resources='{roles}'", checkout) == []
        assert "--num-cpus=96 --num-gpus=8" in command
        assert json.loads(roles).keys() == set(ROLES)
    [align] = commands(submitted, "python")
    assert command_problems(align, checkout) == []
    config = load_config(ROOT / align.split("--config ")[1].split()[0])
    asked = sum(resources_of(config.cluster, role)[role] * getattr(config.cluster, f"{role}s") for role in ROLES)
    assert asked <= json.loads(roles)["learner"], "any node could take all"


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_GPUS": "0,1"}, (2, "gpu:2")),
        ({"SLURM_JOB_GPUS": "0,1,5"}, (3, "gpu:3")),
        ({"CUDA_VISIBLE_DEVICES": "0"}, (1, "none")),
        ({}, (0, "none")),
    ],
)
def test_gpus_are_those_that_slurm_gave(submitted: Path, given: dict[str, str], gpus: tuple[int, str]) -> None:
    assert start(submitted, **given).wait() == 0
    rays, steps = gpus
    lines = commands(submitted, "srun")
    assert all(f"--num-gpus={rays} " in line and f"--gres={steps} " in line for line in lines)


def test_the_job_ends_with_the_alignments_code_and_its_steps_with_it(submitted: Path) -> None:
    (submitted / "driver-code").write_text("2")
    assert start(submitted).wait() == 2
    wait_for(lambda: steps_are_over(submitted), 10)


def test_the_job_fails_if_ray_does_not_start_or_there_is_no_token(submitted: Path) -> None:
    (submitted / "ray-fails").touch()
    job = start(submitted)
    assert "Ray did not start on all nodes" in job.communicate()[1]
    assert job.returncode == 1
    assert not commands(submitted, "python")
    job = start(submitted, RAY_AUTH_TOKEN="")
    assert "export RAY_AUTH_TOKEN" in job.communicate()[1]
    assert job.returncode == 1


def test_before_the_time_limit_the_alignment_saves_and_the_job_is_queued_again(submitted: Path) -> None:
    (submitted / "driver-hangs").touch()
    job = start(submitted)
    wait_for((submitted / "hanging").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 75
    assert "scontrol requeue 7" in commands(submitted, "scontrol")
    wait_for(lambda: steps_are_over(submitted), 10)
