"""`rlhf doctor`: its judgement of the nodes' answers, and its checks on a Ray of two nodes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from command_line import rlhf, rlhf_process
from ray.cluster_utils import Cluster
from s3_server import run_s3_server

from actors.doctor.examination import check_learners, check_storage, examine, node_checks, wait_for_nodes
from actors.doctor.findings import (
    Finding,
    judge_gpus,
    judge_hub,
    judge_nodes,
    judge_ports,
    judge_shm,
    judge_storage,
    judge_versions,
    render,
)
from actors.session.ray_session import ray_session
from rlhf.config.cluster_config import ClusterConfig

GPU = node_checks.Gpu(name="H200", driver="570.1")


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.remedy]


def test_versions_that_differ_are_named_with_their_nodes() -> None:
    same = {"python": "3.11.9", "torch": "2.13.0"}
    assert wrong(judge_versions({"a": same, "b": same})) == []
    findings = judge_versions({"a": same, "b": same | {"torch": "2.12.0"}, "c": same})
    assert [f.found for f in wrong(findings)] == ["2.13.0 on a, c; 2.12.0 on b"]
    assert [f.found for f in findings if not f.remedy] == ["python 3.11.9"]


def test_a_package_that_is_missing_everywhere_is_wrong_although_equal() -> None:
    findings = judge_versions({"a": {"deepspeed": "missing"}, "b": {"deepspeed": "missing"}})
    assert [f.where for f in wrong(findings)] == ["deepspeed"]


def test_nodes_that_have_not_joined_are_wrong() -> None:
    assert judge_nodes(["a", "b"], 2, 0.0).verdict == "ok"
    few = judge_nodes(["10.0.0.1"], 3, 600.0)
    assert few.verdict == "WRONG"
    assert "1 of 3 after 600 s: 10.0.0.1" in few.found


def test_shared_memory_must_hold_the_object_store() -> None:
    assert judge_shm("a", 8 * 2**30, 4 * 2**30).verdict == "ok"
    small = judge_shm("a", 64 * 2**20, 4 * 2**30)
    assert small.verdict == "WRONG"
    assert "--shm-size=4.4g" in (small.remedy or "")
    assert judge_shm("a", 0, 2**30).verdict == "WRONG"


def test_gpus_that_ray_was_told_of_must_be_there_with_one_driver() -> None:
    assert wrong(judge_gpus({"a": (2.0, [GPU, GPU]), "head": (0.0, [])})) == []
    assert [f.where for f in wrong(judge_gpus({"a": (2.0, [GPU]), "b": (1.0, [GPU])}))] == ["a"]
    other = node_checks.Gpu(name="H200", driver="560.0")
    assert len(wrong(judge_gpus({"a": (1.0, [GPU]), "b": (1.0, [other])}))) == 2
    assert judge_gpus({"a": (0.0, [GPU])})[0].verdict == "note"


def test_a_storage_that_cannot_be_written_and_closed_ports_are_wrong_but_being_offline_is_not() -> None:
    assert judge_storage("a", "/shared", None, 2).verdict == "ok"
    unwritable = judge_storage("a", "/shared", "cannot be written: read-only file system", 2)
    assert unwritable.verdict == "WRONG"
    assert "read-only" in unwritable.found
    closed = judge_ports("a", 6, {"b": ["ObjectManagerPort 8076"]})
    assert "ObjectManagerPort 8076 of b" in closed.found
    assert closed.verdict == "WRONG"
    assert judge_hub("a", "no answer").verdict == "note"
    table = render([unwritable, judge_hub("a", None)])
    assert [line.split()[0] for line in table.splitlines()] == ["storage", "remedy:", "model"]


def test_help_answers_without_ray() -> None:
    script = (
        "import sys, rlhf.commands.cli\ntry:\n    rlhf.commands.cli.app(['doctor', '--help'])\nexcept SystemExit:\n"
    )
    script += "    print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--storage" in done.stdout
    assert done.stdout.strip().endswith("set()")


def test_bad_input_ends_with_exit_code_2() -> None:
    done = rlhf("doctor", "--config", "absent.yaml")
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_sound_cluster_of_two_nodes_has_every_check_done_on_both(two_nodes: str, tmp_path: Path) -> None:
    findings = examine(None, str(tmp_path))
    assert wrong([f for f in findings if f.check != "/dev/shm"]) == []
    counts = {check: sum(f.check == check for f in findings) for check in {f.check for f in findings}}
    per_node = dict.fromkeys(("GPUs", "/dev/shm", "ports", "object store", "storage", "model hub"), 2)
    assert counts == per_node | {"versions": 1, "all-reduce": 1}
    assert "gloo" in next(f.found for f in findings if f.check == "all-reduce")
    assert len({f.where for f in findings if f.check == "storage"}) == 2
    assert list(tmp_path.iterdir()) == [], "the files that were written are gone"


@pytest.mark.ray
def test_what_a_run_asks_and_the_cluster_lacks_is_found(two_nodes: str, tmp_path: Path) -> None:
    assert [wait_for_nodes(wanted, timeout_s=0.0).verdict for wanted in (2, 3)] == ["ok", "WRONG"]
    findings = check_learners(ClusterConfig(learners=3, cpus_per_actor=2.0), is_run=True)
    assert "do not fit" in wrong(findings)[0].found
    file = tmp_path / "file"
    file.write_text("")
    nodes = {node["NodeID"]: node for node in ray.nodes()}
    findings = check_storage(nodes, str(file))
    assert [f.verdict for f in findings] == ["WRONG", "WRONG"]
    assert "cannot be written" in findings[0].found


@pytest.mark.ray
def test_the_command_joins_a_cluster_and_its_exit_code_says_that_something_is_wrong(two_nodes: str) -> None:
    done = rlhf_process("doctor", "--address", two_nodes, "--storage", "/proc/nowhere")
    assert done.returncode == 1, done.stderr
    assert "/proc/nowhere: cannot be written" in done.stdout
    assert "remedy: mount one folder" in done.stdout
    assert done.stderr.count(f"warning: the Ray cluster at {two_nodes} is joined without a token") == 1


@pytest.mark.ray
def test_a_bucket_is_written_and_read_by_a_node_and_a_missing_one_is_found() -> None:
    with run_s3_server():
        ray.shutdown()
        with ray_session(num_cpus=1):
            nodes = {node["NodeID"]: node for node in ray.nodes()}
            assert wrong(check_storage(nodes, "s3://runs/shared")) == []
            assert "no such bucket" in wrong(check_storage(nodes, "s3://absent/shared"))[0].found
