"""Ray nodes with addresses of their own, in network namespaces of this host, as root."""

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


@contextlib.contextmanager
def run_network() -> Iterator[None]:
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
    try:
        yield
    finally:
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


def start_machine(node: int, log: Path, script: str) -> subprocess.Popen:
    """Runs a shell script on a node with processes and /tmp/ray of its own; killing it is pulling the node's plug."""
    Path("/tmp/ray").mkdir(exist_ok=True)
    words = ["ip", "netns", "exec", f"{PREFIX}{node}", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
    words += ["--mount-proc", "bash", "-c", f"mount -t tmpfs tmpfs /tmp/ray; {script}"]
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=log.open("a"), stderr=subprocess.STDOUT)


def kill_process(node: int, name: str) -> None:
    """Sends SIGKILL to the processes of that name on a node."""
    listed = subprocess.run(["ip", "netns", "pids", f"{PREFIX}{node}"], capture_output=True, text=True, check=True)
    for pid in listed.stdout.split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                os.kill(int(pid), signal.SIGKILL)
