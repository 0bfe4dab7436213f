"""Several nodes on one machine: two sample, one learns; one is lost, one joins; the figures stay the same."""

import threading
from pathlib import Path

import pytest
import ray
from align_runs import lasting_figures, with_cluster
from processes import wait_for
from ray.cluster_utils import Cluster
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align
from actors.telemetry.incidents import read_incidents
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def sampler_incidents(out: Path) -> list[dict]:
    return [line for line in read_incidents(out) if line["role"] == "sampler"]


def test_a_run_outlives_a_node_and_takes_in_another(small_pipeline: Path, tmp_path: Path) -> None:
    inputs = write_prompts(small_prompts(8), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    config = with_cluster(small_config(small_pipeline, updates=6), samplers=2, role_resources=True)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "resources": {"learner": 1, "scorer": 1}, "include_dashboard": False},
    )
    samplers = [cluster.add_node(num_cpus=1, resources={"sampler": 1}) for _ in range(2)]
    errors: list[BaseException] = []

    def train(out: Path) -> None:
        try:
            align(config, *inputs, out, address=cluster.address)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    try:
        train(tmp_path / "undisturbed")
        assert not errors
        run = threading.Thread(target=train, args=(tmp_path / "run",))
        run.start()
        wait_for(lambda: len(read_metrics(tmp_path / "run")) > 0 or not run.is_alive())
        cluster.remove_node(samplers[0], allow_graceful=False)
        wait_for(lambda: len(sampler_incidents(tmp_path / "run")) > 0 or not run.is_alive())
        cluster.add_node(num_cpus=1, resources={"sampler": 1})
        run.join(300)
        assert not run.is_alive()
        assert not errors, errors
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lasting_figures(tmp_path / "run") == lasting_figures(tmp_path / "undisturbed")
    assert sampler_incidents(tmp_path / "run"), "the lost node's sampler was replaced"
