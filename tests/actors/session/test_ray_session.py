"""Ray of a command's own: nobody else reaches it, and it is there or said to be gone."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import ray
import requests
from listening import beyond_loopback, listening, status_of_call, watch_listening

from actors.doctor.examination import check_learners
from actors.session.ray_session import own_access, ray_session
from rlhf.config.cluster_config import ClusterConfig

pytestmark = pytest.mark.ray
WRONG = (None, "0" * 64)
"""What a stranger may present: no token, or a wrong one."""


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, list[int]]]:
    """The listening ports of a small session, by process."""
    names = ("gcs_server", "raylet/raylet", "DashboardAgent", "RuntimeEnvAgent", "ray::IDLE")
    with ray_session(num_cpus=2):
        ray.get(ray.remote(lambda: 1).remote())
        found = listening()
        yield {name: [port for (_, port), command in found.items() if name in command] for name in names}


def status_of_post(port: int, path: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = {"entrypoint": "touch stranger"}
    return requests.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers, timeout=20).status_code


@pytest.mark.parametrize("token", WRONG)
@pytest.mark.parametrize(
    ("process", "method"),
    [
        ("gcs_server", "InternalKVGcsService/InternalKVKeys"),
        ("gcs_server", "JobInfoGcsService/GetAllJobInfo"),
        ("raylet/raylet", "NodeManagerService/GetNodeStats"),
        ("raylet/raylet", "ObjectManagerService/Push"),
        ("DashboardAgent", "ReporterService/GetTraceback"),
        ("ray::IDLE", "CoreWorkerService/GetCoreWorkerStats"),
    ],
)
def test_a_stranger_is_refused_by_every_process_of_ray(
    ports: dict[str, list[int]], process: str, method: str, token: str | None
) -> None:
    answers = {status_of_call(port, f"ray.rpc.{method}", token) for port in ports[process]}
    assert "UNAUTHENTICATED" in answers
    # The others do not speak gRPC, or have no such service.
    assert answers <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}


@pytest.mark.parametrize("token", WRONG)
def test_a_stranger_submits_no_job_and_prepares_no_process(ports: dict[str, list[int]], token: str | None) -> None:
    def statuses(process: str, path: str) -> set[int]:
        found = set()
        for port in ports[process]:
            try:
                found.add(status_of_post(port, path, token))
            except requests.ConnectionError:  # speaks gRPC
                continue
        return found

    refusal = 401 if token is None else 403
    # 405: figures for Prometheus, which take no POST.
    assert statuses("DashboardAgent", "/api/job_agent/jobs/") == {refusal, 405}
    assert statuses("RuntimeEnvAgent", "/get_or_create_runtime_env") == {refusal}


def test_ray_on_this_machine_has_no_process_that_only_a_cluster_needs(ports: dict[str, list[int]]) -> None:
    family = psutil.Process().children(recursive=True)
    commands = [" ".join(process.cmdline()) for process in family if process.status() != psutil.STATUS_ZOMBIE]
    assert [command for command in commands if not any(name in command for name in ports)] == []


def test_who_has_the_token_is_answered(ports: dict[str, list[int]]) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    [port] = ports["gcs_server"]
    assert status_of_call(port, "ray.rpc.JobInfoGcsService/GetAllJobInfo", token) == "OK"


def test_a_session_listens_on_loopback_alone_and_so_does_its_examination(ports: dict[str, list[int]]) -> None:
    with watch_listening() as found:
        findings = check_learners(ClusterConfig(learners=2, cpus_per_actor=1.0), is_run=False)
    assert [finding.remedy for finding in findings] == [None]
    assert len(found) >= 8
    assert beyond_loopback(found) == {}


def test_the_token_and_the_loopback_are_gone_after_the_session() -> None:
    before = dict(os.environ)
    with own_access():
        first = os.environ["RAY_AUTH_TOKEN"]
        assert ray.util.get_node_ip_address() == "127.0.0.1"
    with own_access():
        assert os.environ["RAY_AUTH_TOKEN"] != first
    assert dict(os.environ) == before


def test_ray_of_a_command_notices_the_death_of_serves_proxy_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from ray.serve._private import constants as c; print(c.PROXY_HEALTH_CHECK_PERIOD_S)"
    read = [sys.executable, "-c", script]
    with own_access():
        assert subprocess.run(read, capture_output=True, text=True, check=True).stdout == "1.0\n"
    monkeypatch.setenv("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "7")
    with own_access():
        assert os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] == "7"
