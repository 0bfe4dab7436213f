"""Doctor and service run with the rights that the chart's pods have: no capabilities, a read-only root, user 1000."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from PIL import Image

import rlhf

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(rlhf.__file__).parents[1]
SCRIPT = Path(__file__).with_name("as_a_pod.sh")
START_S = 300.0
"""Longest start of the service."""


@pytest.fixture
def as_a_pod(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command with a pod's rights; it may write below `tmp_path / "shared"`."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root, unshare and setpriv")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("this machine allows no mount namespaces")
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 1000, 1000)
    start = ["unshare", "--mount", "bash", str(SCRIPT), sys.executable, str(ROOT), str(shared)]

    def run(*command: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*start, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return run


def test_a_pod_cannot_write_to_its_root_and_has_no_capability(as_a_pod: Callable, tmp_path: Path) -> None:
    script = f"id -u; grep CapBnd /proc/self/status; touch x /usr/x; touch /tmp/x {tmp_path}/shared/x && echo written"
    told = as_a_pod("sh", "-c", script).communicate(timeout=60)[0]
    assert told.startswith("1000\nCapBnd:\t0000000000000000\n")
    assert told.count("Read-only file system") == 2
    assert told.endswith("written\n")
    assert (tmp_path / "shared" / "x").stat().st_uid == 1000


def test_doctor_finds_a_pod_well(as_a_pod: Callable, tmp_path: Path) -> None:
    doctor = as_a_pod(sys.executable, "-m", "rlhf", "doctor", "--storage", str(tmp_path / "shared"))
    told = doctor.communicate(timeout=START_S)[0]
    assert "all is well" in told
    assert doctor.returncode == 0


def test_the_service_answers_in_a_pod(as_a_pod: Callable, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = as_a_pod(sys.executable, "-m", "rlhf", "serve", "--port", str(port), "--num-cpus", "1")
    url, ends = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while not is_ready(url):
            assert serving.poll() is None, serving.communicate()[0]
            assert time.monotonic() < ends, "not ready"
            time.sleep(1)
        Image.new("RGB", (32, 32), "tan").save(tmp_path / "image.png")
        mask = Image.new("RGBA", (32, 32), "black")
        mask.paste((0, 0, 0, 0), (8, 8, 24, 24))
        mask.save(tmp_path / "mask.png")
        files = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("image", "mask")}
        answer = requests.post(f"{url}/v1/images/edits", files=files, timeout=120)
        assert answer.status_code == 200, answer.text
    finally:
        serving.terminate()
        serving.wait(timeout=120)


def is_ready(url: str) -> bool:
    """Whether the service answers that all models are loaded."""
    try:
        return requests.get(f"{url}/readyz", timeout=10).ok
    except requests.RequestException:
        return False
