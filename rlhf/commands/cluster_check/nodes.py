"""The nodes that a cluster file gives, and whether the runs and services of its commands have room on them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.resources import ROLES, Resources, describe_actors, find_missing, find_shortage
from rlhf.commands.cluster_shell import UNKNOWN, Command, Run, parse_ray_start, read_commands
from serve.settings import ServiceSettings

ASKED_BY_MACHINE = {"CPU": math.inf, "GPU": math.inf}


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The nodes that a cluster file gives, as many as it allows."""

    key: str
    """The key of the file that says so."""
    nodes: Sequence[Resources]
    """What Ray is told of each node; infinite where the machine itself decides."""
    remedy: str
    """How the file gives nodes a resource."""


def ray_up_offer(config: Mapping[str, Any]) -> Offer:
    """Returns the nodes of a `ray up` file as Ray has prepared it."""
    nodes, head, types = [], config["head_node_type"], config["available_node_types"]
    if config["provider"]["type"] == "local":
        starts = [c for line in config["worker_start_ray_commands"] for c in read_commands(line)]
        nodes = [started_node(c.words) for c in starts if c.words[1:2] == ["start"]] * config["max_workers"]
        return Offer(
            key="worker_start_ray_commands",
            nodes=nodes,
            remedy="give it by `ray start --resources='{\"learner\": 8}'` or the like",
        )
    for name, node in types.items():
        count = 1 if name == head else node.get("max_workers", config["max_workers"])
        nodes += [ASKED_BY_MACHINE | node.get("resources", {})] * count
    return Offer(key="available_node_types", nodes=nodes, remedy="add it to `resources:` of a node type")


def started_node(words: list[str]) -> Resources:
    """Returns what a `ray start` tells Ray of its node."""
    options = parse_ray_start(words)
    amounts = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus")}
    named = options.get("resources", UNKNOWN)
    amounts |= dict.fromkeys(ROLES, math.inf) if named == UNKNOWN else json.loads(named)
    return {key: math.inf if n is None or str(n) == UNKNOWN else float(n) for key, n in amounts.items()}


def started_offer(count: int, starts: Sequence[Command]) -> Offer:
    """Returns the nodes of a script that runs `ray start`, or `ray symmetric-run`, on `count` machines.

    They are the head's, and for each other machine the most that any command for workers gives.
    """
    heads = [started_node(start.words) for start in starts if "--head" in start.words]
    others = [started_node(start.words) for start in starts if "--head" not in start.words]
    worker = {key: max(node.get(key, 0.0) for node in others) for node in others for key in node}
    return Offer(
        key="ray start",
        nodes=[*heads[:1], *([worker] * (count - len(heads[:1])) if others else [])],
        remedy="tell each node by `ray start --resources='{\"learner\": 8}'` or the like",
    )


def kuberay_offer(spec: Mapping[str, Any]) -> Offer:
    """Returns the nodes of a RayCluster's spec as Ray's own autoscaler counts them.

    Raises ValueError, naming the fault, if the autoscaler cannot.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config

    try:
        types = autoscaling_config._generate_available_node_types_from_ray_cr_spec(dict(spec))
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
    nodes = []
    for node, group in zip(types.values(), [None, *spec["workerGroupSpecs"]], strict=True):
        if group is None:
            count = 1
        elif spec.get("enableInTreeAutoscaling"):
            count = node["max_workers"]
        else:
            count = group.get("replicas", 0) * group.get("numOfHosts", 1)
        nodes += [node["resources"]] * count
    return Offer(key="workerGroupSpecs", nodes=nodes, remedy="add it to `resources:` of a worker group")


def room_problems(offer: Offer, run: Run) -> list[str]:
    """Returns what a run asks for, by the code that will reserve it, and no node of the file has."""
    roles, cluster = _roles(run), run.config.cluster
    if sum(node.get("GPU", 0.0) for node in offer.nodes) == 1 and roles == ROLES:
        from actors.colocation import share_gpus

        cluster = share_gpus(run.config, 1.0).cluster
    absent = [role for role in roles if cluster.role_resources and not any(node.get(role) for node in offer.nodes)]
    if absent:
        asked = f"cluster.role_resources of {run.file} asks for"
        return [f"{offer.key}: no node has the resource {' or '.join(absent)}, which {asked}; {offer.remedy}"]
    shortage = find_missing(cluster, roles, offer.nodes)
    if shortage is None:
        return []
    asked = describe_actors(cluster, roles)
    return [f"{offer.key}: {shortage}; {asked}; give more there, or ask for less in `cluster:` of {run.file}"]


def _roles(run: Run) -> tuple[str, ...]:
    """Returns the roles whose actors a command starts on the cluster."""
    if run.name == "align" and (run.options.get("replay") or run.options.get("candidates")):
        return ("learner",)
    if run.name == "align":
        return ROLES[:2] if run.options.get("rollouts_only") else ROLES
    return ("sampler",) if run.name in ("candidates", "evaluate") and run.options.get("address") else ()


def service_problems(offer: Offer, settings: ServiceSettings) -> list[str]:
    """Returns what the copies of one base model ask for, and no node of the file has."""
    gpus = float(settings.device == "cuda") if settings.num_gpus is None else settings.num_gpus
    copy = {"CPU": 1.0 if settings.num_cpus is None else settings.num_cpus, "GPU": gpus}
    for name, count in (("replicas", settings.replicas), ("max_replicas", settings.max_replicas or 0)):
        shortage = find_shortage([copy] * count, offer.nodes, "PACK")
        if shortage is not None:
            return [f"{offer.key}: {shortage}; {name} of the service is {count}; give more nodes, or set it lower"]
    return []
