"""Nodes with addresses of their own, in network namespaces: one is cut off while it samples, another joins."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from align_runs import lasting_figures, with_cluster
from network_nodes import head_answers, ip, run_network, start, start_ray
from processes import wait_for
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.telemetry.incidents import read_incidents
from rlhf.config.config_files import dump_config
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def network() -> Iterator[None]:
    with run_network():
        yield


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
