"""Nodes with addresses of their own, in network namespaces: one is cut off while it samples, another joins."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from align_runs import lasting_figures, with_cluster
from processes import wait_for
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.telemetry.incidents import read_incidents
from rlhf.config.config_files import dump_config
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BRIDGE, PREFIX, NODES = "rlhf-bridge", "rlhf-node", 4
HEAD = ("10.77.0.1", 6379)
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "disabled",
    # A node that does not answer is given up after 5 s.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def remove_network() -> None:
    """With all that still runs in it, which would keep it alive."""
    for node in range(1, NODES + 1):
        pids = subprocess.run(["ip", "netns", "pids", f"{PREFIX}{node}"], capture_output=True, text=True).stdout.split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", f"{PREFIX}{node}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"rlhf-{node}"], capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


@pytest.fixture
def network() -> Iterator[None]:
    """Namespaces `rlhf-node1` to 4 with the addresses 10.77.0.1 to 4, on one bridge."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command `ip` of iproute2")
    remove_network()
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        ip("address", "add", "10.77.0.254/24", "dev", BRIDGE)
        for node in range(1, NODES + 1):
            name = f"{PREFIX}{node}"
            ip("netns", "add", name)
            ip("link", "add", f"rlhf-{node}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"rlhf-{node}", "master", BRIDGE, "up")
            ip("-n", name, "address", "add", f"10.77.0.{node}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove_network()
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    yield
    remove_network()


def head_answers() -> bool:
    with contextlib.suppress(OSError), socket.create_connection(HEAD, timeout=1):
        return True
    return False


def start(node: int, log: Path, *command: str | Path) -> subprocess.Popen:
    words = ["ip", "netns", "exec", f"{PREFIX}{node}"]
    if node > 1:  # The head's own folder for sessions is left to it and the driver.
        words += ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /tmp/ray && exec "$@"', "sh"]
    words += [sys.executable, "-m", *map(str, command)]
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=log.open("w"), stderr=subprocess.STDOUT)


def start_ray(node: int, resources: str, log: Path) -> subprocess.Popen:
    Path("/tmp/ray").mkdir(exist_ok=True)
    where = ["--head", "--port=6379", "--include-dashboard=false"] if node == 1 else ["--address=10.77.0.1:6379"]
    cpus = "--num-cpus=4" if node == 1 else "--num-cpus=1"
    address, asked = f"--node-ip-address=10.77.0.{node}", f"--resources={resources}"
    return start(node, log, "ray.scripts.scripts", "start", *where, cpus, address, asked, "--block")


def test_a_node_that_is_cut_off_is_replaced_by_one_that_joins(
    network: None, small_pipeline: Path, tmp_path: Path
) -> None:
    prompts, reward = write_prompts(small_prompts(8), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    config = small_config(small_pipeline, updates=40, checkpoint_every=20)
    config = with_cluster(config, samplers=2, role_resources=True)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    words = ["rlhf", "align", "--prompts", prompts, "--reward", reward, "--config", tmp_path / "config.yaml"]
    words += ["--address", "10.77.0.1:6379", "--wait"]
    logs = {name: tmp_path / f"{name}.log" for name in ("node1", "node2", "node3", "node4", "undisturbed", "run")}
    started = [start_ray(1, '{"learner": 1, "scorer": 1}', logs["node1"])]
    try:
        wait_for(head_answers)
        started += [start_ray(node, '{"sampler": 1}', logs[f"node{node}"]) for node in (2, 3)]
        undisturbed = start(1, logs["undisturbed"], *words, "--out", tmp_path / "undisturbed")
        started.append(undisturbed)
        assert undisturbed.wait(300) == 0, logs["undisturbed"].read_text()
        run = start(1, logs["run"], *words, "--out", tmp_path / "run")
        started.append(run)
        wait_for(lambda: len(read_metrics(tmp_path / "run")) >= 1)
        ip("link", "set", "rlhf-3", "down")
        started.append(start_ray(4, '{"sampler": 1}', logs["node4"]))
        assert run.wait(400) == 0, logs["run"].read_text()
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(60)
    assert lasting_figures(tmp_path / "run") == lasting_figures(tmp_path / "undisturbed")
    assert [line for line in read_incidents(tmp_path / "run") if line["role"] == "sampler"], "it was replaced"
