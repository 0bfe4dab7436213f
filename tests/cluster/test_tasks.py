"""The tasks of SkyPilot and dstack are what their packages take, and their nodes have room for the run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_files import file_problems
from rlhf.commands.cluster_shell import Checkout

ROOT = Path(rlhf.__file__).parents[1]
CHECKOUT = Checkout(root=ROOT, rlhf=get_command(app))
CLUSTER = ROOT / "cluster"


@pytest.mark.parametrize("name", ["skypilot", "dstack"])
def test_a_task_has_room_for_its_run(name: str) -> None:
    assert file_problems(CLUSTER / f"{name}.yaml", CHECKOUT) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "message"),
    [
        ("skypilot", "A100-80GB:8", "A100-80GB:4", r"do not fit .*8 node\(s\) of \? CPU 4 GPU"),
        ("skypilot", "A100-80GB:8", "{A100-80GB: 4}", r"do not fit .*8 node\(s\) of \? CPU 4 GPU"),
        ("skypilot", "num_nodes: 8", "num_nodes: 7", "do not fit .*7 node"),
        ("skypilot", "64gpu.yaml", "65gpu.yaml", "does not exist"),
        ("skypilot", '"scorer": 8', '"scores": 8', "no node has the resource scorer"),
        ("dstack", "80GB:8", "80GB:4", r"do not fit .*8 node\(s\) of \? CPU 4 GPU"),
        ("dstack", "  gpu: 80GB:8\n", "", "do not fit"),
        ("dstack", "--wait", "--wiat", "No such option.*--wiat"),
    ],
)
def test_a_mistake_in_a_task_is_told(name: str, right: str, wrong: str, message: str, tmp_path: Path) -> None:
    text = (CLUSTER / f"{name}.yaml").read_text()
    assert right in text
    (tmp_path / "task.yaml").write_text(text.replace(right, wrong))
    problems = file_problems(tmp_path / "task.yaml", CHECKOUT)
    assert any(re.search(message, problem) for problem in problems), problems


def test_skypilot_takes_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="skypilot is not installed")
    task = sky.Task.from_yaml(str(CLUSTER / "skypilot.yaml"))
    (resources,) = task.resources
    assert (task.num_nodes, resources.accelerators) == (8, {"A100-80GB": 8})
    record = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    with pytest.raises(ValueError, match="num_node"):
        sky.Task.from_yaml_config({"num_node": 8} | {key: value for key, value in record.items() if key != "num_nodes"})


def test_dstack_takes_its_task() -> None:
    configurations = pytest.importorskip(
        "dstack._internal.core.models.configurations", reason="dstack is not installed"
    )
    record = yaml.safe_load((CLUSTER / "dstack.yaml").read_text())
    task = configurations.parse_run_configuration(record)
    assert (task.nodes, task.resources.gpu.count.min) == (8, 8)
    with pytest.raises(Exception, match="extra fields not permitted|[Ee]xtra inputs"):
        configurations.parse_run_configuration(record | {"node": 8})


@pytest.mark.parametrize("name", ["skypilot", "dstack"])
def test_the_first_node_starts_head_and_run_and_the_others_join(name: str, tmp_path: Path) -> None:
    """The task's script is run with stand-ins for the programs that it starts."""
    for program in ("ray", "python", "sleep"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "{program} $*"\n')
        (tmp_path / program).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    record = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    shell, script = ("bash", record["run"]) if name == "skypilot" else ("sh", "\n".join(record["commands"]))
    first = {"DSTACK_MASTER_NODE_IP": "10.0.0.1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    gpus = {"DSTACK_GPUS_PER_NODE": "8", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "PATH": f"{tmp_path}:/usr/bin:/bin"}

    def start(rank: str) -> list[str]:
        environment = first | gpus | {"DSTACK_NODE_RANK": rank, "SKYPILOT_NODE_RANK": rank}
        command = [shell, "-c", script.replace("cd /app", "")]
        return subprocess.check_output(command, env=environment, cwd=tmp_path, text=True).splitlines()

    head, run = start("0")
    assert head.startswith("ray start --head --port=6379 --num-gpus=8")
    assert run.startswith("python -m rlhf align --address 10.0.0.1:6379 --wait --resume")
    assert start("1")[0].startswith("ray start --address=10.0.0.1:6379 --num-gpus=8")
    assert start("1")[1:] in ([], ["sleep infinity"])
