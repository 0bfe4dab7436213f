"""What the actors of a run ask for, and whether the nodes of a cluster hold it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rlhf.config.cluster_config import ClusterConfig

Resources = dict[str, float]
"""Amounts by Ray's names; infinite is an amount of a node that a cluster file leaves to the machine."""
ROLES = ("sampler", "scorer", "learner")
SLACK = 1e-9
MOST_GPUS = 16
"""More than a node has; a node whose GPUs are unknown has as many."""


def resources_of(cluster: ClusterConfig, role: str) -> Resources:
    """Returns the resources that one actor of a role asks for: `sampler`, `scorer` or `learner`."""
    gpus = getattr(cluster, f"gpus_per_{role}")
    gpus = cluster.gpus_per_actor if gpus is None else gpus
    marked = {role: gpus or 1.0} if cluster.role_resources else {}
    return {"CPU": cluster.cpus_per_actor} | ({"GPU": gpus} if gpus else {}) | marked


def bundles_of(cluster: ClusterConfig, roles: Sequence[str] = ROLES) -> list[Resources]:
    """Returns one bundle per sampler, then one per scorer, if they are among the roles."""
    counts = {"sampler": cluster.samplers, "scorer": cluster.scorers}
    return [resources_of(cluster, role) for role, count in counts.items() if role in roles for _ in range(count)]


def find_missing(cluster: ClusterConfig, roles: Sequence[str], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Describes what the nodes lack for a run's start, with the fewest learners that it takes; None if all fit."""
    learners = [resources_of(cluster, "learner")] * (cluster.min_learners or cluster.learners)
    wanted = [*bundles_of(cluster, roles), *(learners if "learner" in roles else [])]
    return find_shortage(wanted, nodes, cluster.placement)


def find_shortage(wanted: Sequence[Resources], nodes: Sequence[Mapping[str, float]], placement: str) -> str | None:
    """Describes the resources that the nodes lack for the bundles; None if all fit.

    The largest bundles are placed first, each on the first node with room; a fraction of a GPU lies on one GPU.
    STRICT_PACK takes one node, STRICT_SPREAD one bundle per node.
    """
    if placement == "STRICT_PACK":
        tries = [_unplaced(wanted, [node], is_spread=False) for node in nodes] or [list(wanted)]
        unplaced = min(tries, key=len)
    else:
        unplaced = _unplaced(wanted, nodes, is_spread=placement == "STRICT_SPREAD")
    if not unplaced:
        return None
    alike = Counter(format_resources(node) for node in nodes)
    exists = "; ".join(f"{count} node(s) of {node}" for node, count in alike.items()) or "no node"
    count = f"{len(unplaced)} of {len(wanted)} actors do not fit ({placement})"
    return f"{count}: missing {format_resources(_sum(unplaced))}; there are {exists}"


def _unplaced(wanted: Sequence[Resources], nodes: Sequence[Mapping[str, float]], *, is_spread: bool) -> list[Resources]:
    free = [_Node(node) for node in nodes]
    unplaced = []
    for bundle in sorted(wanted, key=lambda b: (b.get("GPU", 0.0), b.get("CPU", 0.0)), reverse=True):
        node = next((node for node in free if node.take(bundle)), None)
        if node is None:
            unplaced.append(bundle)
        elif is_spread:
            free.remove(node)
    return unplaced


class _Node:
    """What is free on a node."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._rest = dict(resources)
        gpus = self._rest.pop("GPU", 0.0)
        self._gpus = [math.inf] * MOST_GPUS if math.isinf(gpus) else [1.0] * int(gpus)

    def take(self, bundle: Resources) -> bool:
        """Takes a bundle's resources, all or none; returns whether there was room."""
        share = bundle.get("GPU", 0.0)
        count = math.ceil(share - SLACK)
        each = share / max(1, count)
        fullest = sorted(range(len(self._gpus)), key=self._gpus.__getitem__)
        gpus = [i for i in fullest if self._gpus[i] >= each - SLACK][:count]
        rest = {key: amount for key, amount in bundle.items() if key != "GPU"}
        if len(gpus) < count or any(self._rest.get(key, 0.0) < amount - SLACK for key, amount in rest.items()):
            return False
        for i in gpus:
            self._gpus[i] -= each
        for key, amount in rest.items():
            self._rest[key] -= amount
        return True


def _sum(bundles: Sequence[Resources]) -> Resources:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update(bundle)  # type: ignore[arg-type]
    return dict(total)


def describe_actors(cluster: ClusterConfig, roles: Sequence[str]) -> str:
    """Returns the actors of the roles and what each asks for, as a person reads it."""
    counts = {role: getattr(cluster, f"{role}s") for role in roles}
    asked = (f"{count} {role}(s) of {format_resources(resources_of(cluster, role))}" for role, count in counts.items())
    return f"asked are {', '.join(asked)}, {cluster.placement}"


def format_resources(resources: Mapping[str, float]) -> str:
    """Returns the amounts that count here, such as `8 CPU 0.5 GPU`; `? CPU` where the machine decides."""
    shown = ("CPU", "GPU", *ROLES)
    amounts = {key: resources[key] for key in shown if resources.get(key)}
    return " ".join(f"{'?' if math.isinf(n) else f'{n:g}'} {key}" for key, n in amounts.items()) or "nothing"
