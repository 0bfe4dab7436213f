"""`rlhf align` as a job of a running cluster: by `ray job submit`, and by the Jobs REST API."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from helm_chart import find_kind, read_rendered
from small_parts import save_small_reward, small_prompts, write_prompts

import rlhf
from rlhf.diffusion.policy_manifest import list_policies
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(rlhf.__file__).parents[1]


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A local cluster with a dashboard, which takes the jobs; ports of its own, as another Ray may run here."""
    import ray
    from ray.cluster_utils import Cluster

    port, agent_port = free_ports(2)
    ports = {"dashboard_port": port, "dashboard_agent_listen_port": agent_port}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": True, **ports})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.shutdown()
        cluster.shutdown()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return write_prompts(small_prompts(8), folder / "prompts"), save_small_reward(folder / "reward")


def entrypoint(pipeline: Path, inputs: tuple[Path, Path], out: Path) -> str:
    return (
        f"{sys.executable} -m rlhf align --address auto --config cluster/runs/laptop.yaml "
        f"--set model.path={pipeline} --set align.updates=1 --set cluster.samplers=1 "
        f"--prompts {inputs[0]} --reward {inputs[1]} --out {out}"
    )


def check(out: Path) -> None:
    assert [line["ratio_error"] <= 1e-6 for line in read_metrics(out)] == [True]
    assert [folder.name for folder in list_policies(out)] == ["policy-000001"]


def test_a_job_runs_by_the_command_and_again_by_the_rest_api(
    dashboard: str, small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    command = entrypoint(small_pipeline, inputs, tmp_path / "command")
    submit = ["job", "submit", "--address", dashboard, "--submission-id", "by-command", "--working-dir", str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *submit]
        + ["--runtime-env", str(ROOT / "cluster" / "runtime_env.yaml"), "--", *command.split()],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check(tmp_path / "command")

    # The code that the first job uploaded, by its address in the cluster.
    first = requests.get(f"{dashboard}/api/jobs/by-command", timeout=30).json()
    code = first["runtime_env"]["working_dir"]
    assert code.startswith("gcs://")
    body = {
        "entrypoint": entrypoint(small_pipeline, inputs, tmp_path / "rest"),
        "submission_id": "by-rest",
        "runtime_env": {"working_dir": code},
    }
    requests.post(f"{dashboard}/api/jobs/", json=body, timeout=30).raise_for_status()
    assert wait_for(f"{dashboard}/api/jobs/by-rest") == "SUCCEEDED"
    check(tmp_path / "rest")


def wait_for(job: str, timeout_s: float = 300) -> str:
    """The job's last status."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = requests.get(job, timeout=30).json()["status"]
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            return status
        time.sleep(1)
    return "timed out"


def test_a_job_with_a_key_that_does_not_exist_fails_and_says_which(
    dashboard: str, small_pipeline: Path, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    command = entrypoint(small_pipeline, inputs, tmp_path / "out").replace("align.updates", "align.udpates")
    body = {"entrypoint": f"cd {ROOT} && {command}", "submission_id": "misspelt"}
    requests.post(f"{dashboard}/api/jobs/", json=body, timeout=30).raise_for_status()
    assert wait_for(f"{dashboard}/api/jobs/misspelt") == "FAILED"
    logs = requests.get(f"{dashboard}/api/jobs/misspelt/logs", timeout=30).json()["logs"]
    assert "align.udpates: unknown key; did you mean align.updates?" in logs


def test_the_probes_of_the_manifests_are_answered(dashboard: str) -> None:
    import ray

    record = find_kind(read_rendered(), "RayCluster")
    container = record["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    node = ray.nodes()[0]
    # Kubernetes gives every pod its own address, hence the fixed port there.
    port = node["DashboardAgentListenPort"]
    for probe in ("livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        answer = requests.get(f"http://{node['NodeManagerAddress']}:{port}{path}", timeout=30)
        assert answer.status_code == 200, answer.text
