"""`ray up` on machines reached by ssh: workers join, an alignment outlives a cut cable, a machine comes in by hand."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from lab_hosts import ACTIVATE, Hosts, run_hosts
from processes import wait_for
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.telemetry.incidents import read_incidents
from rlhf.config.config_files import dump_config
from rlhf.config.run_config import ClusterConfig
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SUBMIT = (
    "ray job submit --address http://127.0.0.1:8265 --working-dir . --runtime-env cluster/runtime_env.yaml -- "
    "python -m rlhf align --address auto --wait --config /shared/run.yaml --prompts /shared/prompts "
    "--reward /shared/reward --out /shared/run"
)
DOCTOR = "rlhf doctor --address auto --storage /shared --config /shared/run.yaml"
JOIN = "ray start --address=192.0.2.11:6379 --resources='{\\\"sampler\\\": 1}'"


def write_inputs(hosts: Hosts, pipeline: Path, updates: int, cluster: ClusterConfig) -> None:
    """A run of that many updates with a random small model, in the machines' folder /shared."""
    write_prompts(small_prompts(8), hosts.shared / "prompts")
    save_small_reward(hosts.shared / "reward")
    shutil.copytree(pipeline, hosts.shared / "pipeline")
    config = small_config(Path("/shared/pipeline"), updates=updates).model_copy(update={"cluster": cluster})
    (hosts.shared / "run.yaml").write_text(dump_config(config))
    subprocess.run(["chmod", "-R", "a+rX", hosts.shared], check=True)  # Weights are written for their owner alone.


def has_ray(hosts: Hosts, number: int) -> bool:
    return "raylet" in hosts.run(number, "ps -e -o comm=")


def test_an_alignment_on_three_hosts_outlives_a_cut_cable_and_takes_in_another_host(
    small_pipeline: Path, tmp_path: Path
) -> None:
    with run_hosts(4, tmp_path) as hosts:
        roles = {1: {"learner": 1, "scorer": 1}} | {number: {"sampler": 1} for number in (2, 3)}
        for number, role in roles.items():
            hosts.run(number, f"echo '{json.dumps(role)}' > /etc/prefpaint/resources.json")
        hosts.run(1, "echo RAY_health_check_period_ms=1000 > /etc/prefpaint/environment")
        cluster = ClusterConfig(samplers=2, scorers=1, role_resources=True)
        write_inputs(hosts, small_pipeline, 8, cluster)
        hosts.run(1, ACTIVATE + "ray get-auth-token --generate && ray up cluster/ssh.yaml --yes")
        assert "all is well" in hosts.run(1, ACTIVATE + DOCTOR + " --nodes 3")
        job = hosts.start(1, ACTIVATE + SUBMIT, tmp_path / "job.log")
        wait_for(lambda: len(read_metrics(hosts.shared / "run")) > 0 or job.poll() is not None)
        hosts.script("machines.sh", "cut", 3)
        hosts.run(1, 'scp -r ~/.ray 192.0.2.14: && ssh 192.0.2.14 "' + ACTIVATE + JOIN + '"')
        assert job.wait(400) == 0, (tmp_path / "job.log").read_text()
        assert len(read_metrics(hosts.shared / "run")) == 8
        assert [line for line in read_incidents(hosts.shared / "run") if line["role"] == "sampler"], "it was replaced"
        hosts.script("machines.sh", "mend", 3)
        assert "all is well" in hosts.run(1, ACTIVATE + DOCTOR + " --nodes 4"), "the third came back by itself"
        hosts.run(1, ACTIVATE + "ray down cluster/ssh.yaml --yes")
        wait_for(lambda: not any(has_ray(hosts, number) for number in (1, 2, 3)))
