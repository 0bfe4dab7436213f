"""A head whose state lies in Redis: its GCS is killed, then all of it, while another node trains."""

import shutil
import sys
import time
from pathlib import Path

import pytest
from network_nodes import head_answers, kill_process, run_network, start_machine
from processes import wait_for
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.telemetry.incidents import read_incidents
from rlhf.config.config_files import dump_config
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
REDIS = "printf 'bind 0.0.0.0\\nsave \"\"\\nrequirepass secret\\n' | exec redis-server -"
RAY = f"{sys.executable} -m ray.scripts.scripts start --object-store-memory=100000000"
HEAD = (
    f"export RAY_REDIS_ADDRESS=10.77.0.3:6379; until {RAY} --block --head --num-cpus=0 --port=6379 "
    "--include-dashboard=false --node-ip-address=10.77.0.1 --redis-password=secret; do sleep 1; done"
)
WORKER = (
    "export RAY_gcs_rpc_server_reconnect_timeout_s=600; "
    f"until {RAY} --address=10.77.0.1:6379 --num-cpus=2 --node-ip-address=10.77.0.2; do sleep 1; done; "
    f"{sys.executable} -m rlhf align --address 10.77.0.1:6379 --wait"
)


def test_an_alignment_on_another_node_goes_on_while_its_head_is_lost(small_pipeline: Path, tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server: apt-get install it")
    prompts, reward = write_prompts(small_prompts(8), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(dump_config(small_config(small_pipeline, updates=8, checkpoint_every=8)))
    words = f" --prompts {prompts} --reward {reward} --config {config} --set cluster.samplers=1 --out {run}"
    logs = {name: tmp_path / f"{name}.log" for name in ("redis", "head", "worker")}

    def updates() -> int:
        return len(read_metrics(run))

    def told(what: str) -> None:
        print(f"{time.monotonic() - begun:.1f} s: {what}, {updates()} updates", flush=True)

    begun = time.monotonic()
    with run_network():
        started = [start_machine(3, logs["redis"], REDIS), start_machine(1, logs["head"], HEAD)]
        try:
            wait_for(head_answers)
            told("head")
            worker = start_machine(2, logs["worker"], WORKER + words)
            started.append(worker)
            wait_for(lambda: updates() >= 2 or worker.poll() is not None)
            kill_process(1, "gcs_server")
            told("GCS killed")
            wait_for(lambda: not head_answers())
            wait_for(lambda: head_answers() or worker.poll() is not None)
            told("head is back")
            seen = updates()
            wait_for(lambda: updates() >= seen + 2 or worker.poll() is not None)
            told("trains")
            started[1].kill()
            told("head switched off")
            started.append(start_machine(1, logs["head"], HEAD))
            assert worker.wait(400) == 0, logs["worker"].read_text()
            told("ended")
        finally:
            for process in started:
                process.kill()
            for name, log in logs.items():
                print(name, log.read_text()[-1500:])
    assert updates() == 8
    assert read_incidents(run) == []
