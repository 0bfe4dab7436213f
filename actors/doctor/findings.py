"""Judges the nodes' answers for `rlhf doctor`: pure functions."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.doctor.node_checks import Gpu

HUB_NOTE = "models must be folders, in the hub's cache, or the built-in one"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of the table; a remedy marks a fault."""

    check: str
    where: str
    found: str
    remedy: str | None = None
    is_note: bool = False
    """Information that is no fault."""

    @property
    def verdict(self) -> str:
        """Returns the verdict in one word."""
        return "WRONG" if self.remedy else "note" if self.is_note else "ok"


def judge_nodes(alive: Sequence[str], wanted: int, waited_s: float) -> Finding:
    """Requires that as many nodes as `wanted`, named in `alive`, have joined the cluster."""
    found = f"{len(alive)} of {wanted} after {waited_s:.0f} s: {', '.join(alive)}"
    remedy = (
        "see on the head what the launcher did (`ray status`; /tmp/ray/session_latest/logs/monitor.log), and on the "
        "missing node whether `ray start` reached the head's port"
    )
    return Finding(check="nodes", where="cluster", found=found, remedy=None if len(alive) >= wanted else remedy)


def judge_versions(by_node: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Requires packages to be installed, and equal on all nodes."""
    wrong, equal = [], []
    for package in next(iter(by_node.values())):
        nodes = defaultdict(list)
        for node, versions in by_node.items():
            nodes[versions[package]].append(node)
        if len(nodes) == 1 and "missing" not in nodes:
            equal.append(f"{package} {next(iter(nodes))}")
            continue
        found = "; ".join(f"{version} on {', '.join(names)}" for version, names in nodes.items())
        remedy = "install the same requirements.lock on every node, or start all of them from the same image"
        wrong.append(Finding(check="versions", where=package, found=found, remedy=remedy))
    return wrong + (
        [Finding(check="versions", where=f"{len(by_node)} place(s)", found=", ".join(equal))] if equal else []
    )


def judge_gpus(by_node: Mapping[str, tuple[float, Sequence[Gpu]]]) -> list[Finding]:
    """Requires the GPUs that Ray counts to exist, with one driver in the whole cluster."""
    findings = []
    drivers = {gpu["driver"] for _, gpus in by_node.values() for gpu in gpus}
    for node, (counted, gpus) in by_node.items():
        names = sorted({f"{gpu['name']}, driver {gpu['driver']}" for gpu in gpus})
        found = f"{len(gpus)} ({'; '.join(names)})" if gpus else "none"
        remedy = None
        if counted > len(gpus):
            found += f", but Ray counts {counted:g}"
            remedy = f"see why nvidia-smi does not show them, or start Ray there with --num-gpus {len(gpus)}"
        elif len(drivers) > 1 and gpus:
            remedy = f"install the same driver on all nodes; there are {', '.join(sorted(drivers))}"
        is_note = counted < len(gpus)
        found += f"; Ray counts {counted:g}" if is_note else ""
        findings.append(Finding(check="GPUs", where=node, found=found, remedy=remedy, is_note=is_note))
    return findings


def judge_shm(node: str, shm_bytes: int, store_bytes: float) -> Finding:
    """Requires the object store to fit into /dev/shm; otherwise Ray puts it on the disk, which is slow."""
    found = f"{_size(shm_bytes)}, object store {_size(store_bytes)}"
    remedy = None
    if shm_bytes < store_bytes:
        remedy = (
            f"give the container more (docker --shm-size={_size(store_bytes * 1.1)}, Kubernetes: an emptyDir of medium "
            f"Memory at /dev/shm), or start Ray there with --object-store-memory below {shm_bytes}"
        )
    return Finding(check="/dev/shm", where=node, found=found, remedy=remedy)


def judge_hub(node: str, reason: str | None) -> Finding:
    """Notes whether the model hub is reachable; being offline is no fault."""
    found = "reachable" if reason is None else f"not reachable: {reason}; {HUB_NOTE}"
    return Finding(check="model hub", where=node, found=found, is_note=reason is not None)


def judge_storage(node: str, storage: str, problem: str | None, nodes: int) -> Finding:
    """Requires that every node writes files that all others read."""
    found = (
        f"{storage}: written here, and what {nodes} node(s) wrote was read"
        if problem is None
        else f"{storage}: {problem}"
    )
    remedy = (
        "mount one folder on all nodes at this path, writable for Ray's user; for a URL check credentials and bucket"
    )
    return Finding(check="storage", where=node, found=found, remedy=None if problem is None else remedy)


def judge_ports(node: str, tried: int, closed: Mapping[str, Sequence[str]]) -> Finding:
    """Requires open ports; `closed` holds, by node, the names of ports that refused a connection from this node."""
    found = f"{tried} ports of all nodes take connections from here"
    if closed:
        found = "no connection to " + "; ".join(f"{', '.join(names)} of {other}" for other, names in closed.items())
    remedy = "open these ports between the nodes (firewall, security group, network policy); `ray start` can fix them"
    return Finding(check="ports", where=node, found=found, remedy=remedy if closed else None)


def render(findings: Sequence[Finding]) -> str:
    """Returns the table as text; a remedy stands below its row."""
    rows = [(f.check, f.where, f.verdict) for f in findings]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = []
    for finding, row in zip(findings, rows, strict=True):
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), finding.found]))
        if finding.remedy:
            lines.append(f"    remedy: {finding.remedy}")
    return "\n".join(lines)


def _size(number: float) -> str:
    return f"{number / 2**30:.1f}g" if number >= 2**30 else f"{number / 2**20:.0f}m"
