"""Ray that dies under a command."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from align_runs import lasting_figures
from processes import wait_for
from small_parts import save_small_reward, small_prompts, write_prompts

from actors.session.watch import describe_way_on
from rlhf.reports.metrics_log import read_metrics

WAITING = """
import time
import ray
from actors.session.ray_session import ray_session
with ray_session(num_cpus=1):
    ray.get(ray.remote(lambda: 1).remote())
    sleeping = ray.remote(lambda: time.sleep(300)).remote()
    print("ready", flush=True)
    ray.get(sleeping)
"""


@pytest.mark.ray
@pytest.mark.parametrize("server", ["gcs_server", "raylet"])
def test_a_command_whose_ray_died_says_so_and_ends_with_all_its_processes(server: str) -> None:
    command = [sys.executable, "-c", WAITING]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "ready\n"
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) >= 5
    [victim] = [process for process in family if process.name() == server]
    victim.kill()
    _, errors = driver.communicate(timeout=20)
    assert driver.returncode == 2
    assert f"error: Ray's {server} died" in errors
    assert "Traceback" not in errors
    assert psutil.wait_procs(family, timeout=10)[1] == []


JOINED = """
import sys, threading
from actors.session.watch import end_with_cluster
with end_with_cluster({"gcs_server": ("127.0.0.1", int(sys.argv.pop()))}, silence_s=0.5):
    threading.Event().wait(60)
"""


def test_a_command_whose_joined_cluster_falls_silent_says_so_and_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gcs:
        port = gcs.getsockname()[1]
        driver = subprocess.Popen(
            [sys.executable, "-c", JOINED, "align", "--out", "my run", str(port)], stderr=subprocess.PIPE, text=True
        )
        gcs.accept()[0].close()
        gcs.accept()[0].close()
        assert driver.poll() is None
    _, errors = driver.communicate(timeout=20)
    assert driver.returncode == 2
    assert f"error: Ray's gcs_server at 127.0.0.1:{port} has not answered" in errors
    assert errors.endswith("Start Ray there again. Go on with: rlhf align --out 'my run' --resume\n")


def test_a_head_whose_state_survives_it_is_waited_for_as_long_as_ray_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gcs:
        command = [sys.executable, "-c", JOINED, "align", str(gcs.getsockname()[1])]
        environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "2.5"}
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        gcs.accept()[0].close()
    _, errors = driver.communicate(timeout=20)
    assert driver.returncode == 2
    told = re.search(r"has not answered for (\d+) s", errors)
    assert told is not None
    assert int(told[1]) >= 2


FAILING = """
import socket, sys
from actors.session.watch import end_with_cluster
with socket.create_server(("127.0.0.1", 0)) as raylet, end_with_cluster({"raylet": raylet.getsockname()}):
    if sys.argv.pop() == "dead":
        raylet.close()
    raise RuntimeError("the call failed")
"""


@pytest.mark.parametrize(
    ("raylet", "code", "told"), [("dead", 2, "error: Ray's raylet at"), ("alive", 1, "call failed")]
)
def test_an_error_is_told_as_the_clusters_death_where_that_is_its_cause(raylet: str, code: int, told: str) -> None:
    done = subprocess.run([sys.executable, "-c", FAILING, raylet], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert told in done.stderr


def test_the_command_that_goes_on_is_named() -> None:
    align = ["/bin/rlhf", "align", "--out", "my run"]
    assert describe_way_on(align) == "Go on with: rlhf align --out 'my run' --resume"
    assert describe_way_on([*align, "--resume"]) == "Go on with: rlhf align --out 'my run' --resume"
    assert describe_way_on(["rlhf", "serve", "runs/demo"]) == "Go on with: rlhf serve runs/demo"


@pytest.mark.ray
@pytest.mark.slow
def test_the_named_command_gives_the_figures_of_an_undisturbed_run(small_pipeline: Path, tmp_path: Path) -> None:
    prompts, reward = write_prompts(small_prompts(8), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    words = ["align", "--prompts", prompts, "--reward", reward, "--config", "cluster/runs/laptop.yaml"]
    words += ["--set", f"model.path={small_pipeline}", "--set", "align.updates=4", "--set", "cluster.samplers=1"]
    words += ["--set", "align.checkpoint_every=1"]

    def start(out: str, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "rlhf", *map(str, words), "--out", str(tmp_path / out), *more]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    undisturbed = start("undisturbed")
    assert undisturbed.communicate()[1] is not None
    assert undisturbed.returncode == 0
    disturbed = start("run")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(read_metrics(tmp_path / "run")) > 0)
    [gcs] = [p for p in psutil.Process(disturbed.pid).children(recursive=True) if p.name() == "gcs_server"]
    gcs.kill()
    _, errors = disturbed.communicate(timeout=20)
    assert disturbed.returncode == 2
    assert "--resume" in errors.splitlines()[-1]
    resumed = start("run", "--resume")
    resumed.communicate()
    assert resumed.returncode == 0
    assert lasting_figures(tmp_path / "run") == lasting_figures(tmp_path / "undisturbed")
