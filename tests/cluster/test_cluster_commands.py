"""Commands and files that cluster files name: the programs understand them, and the files exist."""

from pathlib import Path

import pytest
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_shell import Checkout, command_problems

ROOT = Path(rlhf.__file__).parents[1]
CHECKOUT = Checkout(root=ROOT, rlhf=get_command(app))
CLUSTER = ROOT / "cluster"


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
