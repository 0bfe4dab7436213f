"""Commands in the Slurm script and files in the image: the programs that they name understand them."""

import os
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_shell import Checkout, command_problems

ROOT = Path(rlhf.__file__).parents[1]
CHECKOUT = Checkout(root=ROOT, rlhf=get_command(app))
CLUSTER = ROOT / "cluster"


def test_the_slurm_job_starts_what_ray_and_rlhf_understand(tmp_path: Path) -> None:
    """The script is run with stand-ins for Slurm's programs; what it hands to srun is checked."""
    script = CLUSTER / "slurm.sbatch"
    for name, body in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "printf 'n1\\nn2\\n'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    slurm = {"NODELIST": "n[1-2]", "NUM_NODES": "2"}
    environment = {f"SLURM_JOB_{k}": v for k, v in slurm.items()} | {
        "SLURM_CPUS_PER_TASK": "96",
        "SLURM_GPUS_PER_NODE": "8",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    refused = subprocess.run(["bash", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "export RAY_AUTH_TOKEN" in refused.stderr
    environment["RAY_AUTH_TOKEN"] = "secret"
    done = subprocess.run(["bash", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    arguments = done.stdout.splitlines()
    assert arguments[:2] == ["--nodes=2", "--ntasks=2"]
    line = " ".join(arguments[2:])
    assert line.startswith("ray symmetric-run --address n1:6379 --min-nodes 2 --num-cpus 96 --num-gpus 8 -- python")
    assert command_problems(line, CHECKOUT) == []
    assert "secret" not in done.stdout + done.stderr
    assert "No such option" in command_problems(line.replace("--num-cpus", "--nmu-cpus"), CHECKOUT)[0]
    assert "does not exist" in command_problems(line.replace("64gpu", "65gpu"), CHECKOUT)[0]


@pytest.mark.parametrize(
    "line",
    [
        "ray up cluster/absent.yaml",
        "ray job submit --working-dir . --runtime-env cluster/absent.yaml -- python -m rlhf demo --out x",
        "ray job submit --working-dir . -- python -m rlhf demo --config cluster/runs/absent.yaml --out x",
        "cd x && RAY_AUTH_MODE=token rlhf demo --config cluster/runs/absent.yaml --out x",
    ],
)
def test_a_file_that_a_command_names_must_exist(line: str) -> None:
    assert [problem for problem in command_problems(line, CHECKOUT) if "absent.yaml does not exist" in problem]


def test_the_image_copies_what_exists_and_what_is_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in (CLUSTER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for source in [w for w in line.split()[1:-1] if not w.startswith("--")]:
                assert (ROOT / source).exists(), source
                assert source in allowed, source
