"""Examines for `rlhf doctor` whether a cluster can carry a run, by tasks that are pinned to each node."""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.doctor import findings as judging
from actors.doctor import node_checks
from actors.doctor.findings import Finding
from actors.resources import bundles_of, find_shortage, resources_of
from rlhf.config.cluster_config import ClusterConfig

ray.cloudpickle.register_pickle_by_value(node_checks)

ANSWER_S = 120.0
"""Longest time for all nodes together to answer one question; a first task starts a process."""
JOIN_S = 600.0
"""Longest wait for nodes to join."""
PLACES_S = 30.0
"""Longest wait for learner places that others hold."""
BLOCK_BYTES = 16 * 2**20
PORTS = ("NodeManagerPort", "ObjectManagerPort", "MetricsExportPort")
NO_ANSWER = "see whether the node lives (`ray status`, raylet.out of its session), then ask again"

Answers = dict[str, Any]


def examine(cluster: ClusterConfig | None, storage: str | None) -> list[Finding]:
    """Runs all checks on the Ray cluster that this process has joined.

    The learner ranks are placed as in `cluster`; without it one place per node is tried, or two on a single node.
    `storage` is a URL or an absolute path.
    """
    nodes = {f"{n['NodeManagerAddress']} {n['NodeID'][:6]}": n for n in ray.nodes() if n["Alive"]}
    facts, findings = _ask("answers", {name: _on(node, node_checks.inspect_node) for name, node in nodes.items()})
    here = {"this command": node_checks.read_versions()}
    findings += judging.judge_versions({name: fact["versions"] for name, fact in facts.items()} | here)
    findings += judging.judge_gpus(
        {name: (nodes[name]["Resources"].get("GPU", 0.0), fact["gpus"]) for name, fact in facts.items()}
    )
    for name, fact in facts.items():
        store = nodes[name]["Resources"].get("object_store_memory", 0.0)
        findings.append(judging.judge_shm(name, fact["shm_bytes"], store))
    answering = {name: nodes[name] for name in facts}
    findings += check_ports(answering) + check_object_store(answering)
    findings += check_learners(cluster or _some_places(answering), is_run=cluster is not None)
    if storage is None:
        findings.append(Finding(check="storage", where="-", found="not asked for: --storage", is_note=True))
    else:
        findings += check_storage(answering, storage)
    return findings + [judging.judge_hub(name, fact["hub"]) for name, fact in facts.items()]


def wait_for_nodes(wanted: int, timeout_s: float = JOIN_S) -> Finding:
    """Waits until as many nodes have joined the cluster as are `wanted`, at most `timeout_s` seconds."""
    started = time.monotonic()
    while True:
        alive = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
        waited_s = time.monotonic() - started
        if len(alive) >= wanted or waited_s >= timeout_s:
            return judging.judge_nodes(alive, wanted, waited_s)
        time.sleep(1.0)


def _on(node: Mapping[str, Any], function: Callable, *arguments: Any, returns: int = 1) -> Any:
    """Starts a function on a node; it asks for no CPU, so a busy cluster answers too."""
    pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = {"num_cpus": 0, "max_retries": 0, "num_returns": returns, "scheduling_strategy": pinned}
    return ray.remote(**options)(function).remote(*arguments)


def _ask(check: str, calls: Mapping[str, Any], timeout_s: float = ANSWER_S) -> tuple[Answers, list[Finding]]:
    """Returns the answers by name, and a finding for each missing answer."""
    done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout_s)
    answers, findings = {}, []
    for name, call in calls.items():
        found = f"none within {timeout_s:.0f} s"
        if call in done:
            try:
                answers[name] = ray.get(call)
                continue
            except ray.exceptions.RayError as error:
                found = _last_line(error)
        findings.append(Finding(check=check, where=name, found=found, remedy=NO_ANSWER))
    return answers, findings


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:300]


def check_ports(nodes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Checks whether each node can connect to the raylet, object manager and metrics of every other node."""
    names = {(n["NodeManagerAddress"], n[port]): (name, port) for name, n in nodes.items() for port in PORTS}
    calls = {name: _on(node, node_checks.find_closed, list(names)) for name, node in nodes.items()}
    answers, findings = _ask("ports", calls)
    for name, closed in answers.items():
        by_node = defaultdict(list)
        for place in closed:
            other, port = names[tuple(place)]
            by_node[other].append(f"{port} {place[1]}")
        findings.append(judging.judge_ports(name, len(names), by_node))
    return findings


def check_object_store(nodes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Checks whether a block arrives whole from each node at the next one, in a ring."""
    ring = list(nodes)
    calls, sources = {}, {}
    for index, name in enumerate(ring):
        sources[name] = ring[index - 1]
        block, checksum = _on(nodes[sources[name]], node_checks.make_block, BLOCK_BYTES, returns=2)
        calls[name] = _on(nodes[name], node_checks.fetch_block, [block], checksum)
    answers, findings = _ask("object store", calls)
    for name, (is_whole, duration_s) in answers.items():
        found = f"{BLOCK_BYTES >> 20} MB from {sources[name]} in {duration_s:.2f} s"
        remedy = None if is_whole else "the bytes differ: test this node's memory and network"
        findings.append(Finding(check="object store", where=name, found=found, remedy=remedy))
    return findings


def check_storage(nodes: Mapping[str, Mapping[str, Any]], storage: str) -> list[Finding]:
    """Checks whether every node writes a file there that all nodes can read; the files are removed."""
    marks = {name: f".rlhf-doctor-{uuid.uuid4().hex}" for name in nodes}
    writes = {name: _on(node, node_checks.write_mark, storage, marks[name]) for name, node in nodes.items()}
    problems, findings = _ask("storage", writes)
    written = {name: marks[name] for name, problem in problems.items() if problem is None}
    reads = {name: _on(nodes[name], node_checks.read_marks, storage, list(written.values())) for name in written}
    answers, unread = _ask("storage", reads) if reads else ({}, [])
    for name, problem in (problems | answers).items():
        findings.append(judging.judge_storage(name, storage, problem, len(written)))
    removals = {name: _on(nodes[name], node_checks.remove_mark, storage, mark) for name, mark in written.items()}
    _, left = _ask("storage", removals) if removals else ({}, [])
    return findings + unread + left


def _some_places(nodes: Mapping[str, Mapping[str, Any]]) -> ClusterConfig:
    """Returns one learner rank per node, with a GPU if all nodes have one; two ranks on a single node."""
    has_gpus = len(nodes) > 1 and all(node["Resources"].get("GPU") for node in nodes.values())
    learners = max(2, len(nodes))
    return ClusterConfig(learners=learners, gpus_per_learner=float(has_gpus), placement="SPREAD")


def check_learners(cluster: ClusterConfig, *, is_run: bool) -> list[Finding]:
    """Checks whether the learner ranks can all-reduce, and if `is_run`, whether all actors of the run have room."""
    asked = [resources_of(cluster, "learner")] * cluster.learners
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shortage = find_shortage([*bundles_of(cluster), *asked] if is_run else asked, alive, cluster.placement)
    if shortage is not None:
        return [
            Finding(check="places", where="cluster", found=shortage, remedy="add nodes, or ask for less in `cluster:`")
        ]
    group = placement_group(asked, strategy=cluster.placement)
    try:
        if not group.wait(PLACES_S):
            found = f"the learner's places are held by others since {PLACES_S:.0f} s"
            return [Finding(check="all-reduce", where="cluster", found=found, remedy="ask again when they are free")]
        return [_try_all_reduce(group, asked)]
    finally:
        remove_placement_group(group)  # It ends its actors.


def _try_all_reduce(group: Any, bundles: Sequence[Mapping[str, float]]) -> Finding:
    backend, ranks = "nccl" if "GPU" in bundles[0] else "gloo", len(bundles)
    where = f"{ranks} learner place(s)"
    places = []
    for index, bundle in enumerate(bundles):
        asked = dict(bundle)
        options = {"num_cpus": asked.pop("CPU"), "num_gpus": asked.pop("GPU", 0), "resources": asked}
        strategy = PlacementGroupSchedulingStrategy(group, index)
        places.append(ray.remote(**options, scheduling_strategy=strategy)(node_checks.Place).remote())
    try:
        address = ray.get(places[0].address.remote(), timeout=ANSWER_S)
        calls = [p.all_reduce.remote(backend, address, rank, ranks, 60.0) for rank, p in enumerate(places)]
        results = ray.get(calls, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        variable = "NCCL_SOCKET_IFNAME, and set NCCL_DEBUG=INFO" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
        advice = f"let the nodes reach one another on all TCP ports; name the interface by {variable}"
        return Finding(check="all-reduce", where=where, found=f"{backend}: {_last_line(error)}", remedy=advice)
    is_right = all(largest == ranks for largest, _ in results)
    found = f"{backend}: 4 MB in {max(seconds for _, seconds in results) * 1000:.0f} ms at {address}"
    remedy = None if is_right else "the maxima are wrong: test memory and network of these nodes"
    return Finding(check="all-reduce", where=where, found=found, remedy=remedy)
