"""Places the actors of a run: reserves all resources at once, and checks them before anything starts."""

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.pool.dispatch import Dispatcher
from actors.pool.worker_pool import WorkerPool, send_to_sleep
from actors.reward_scorer import RewardScorer
from actors.rollout_sampler import RolloutSampler
from actors.telemetry.incidents import Incidents
from rlhf.config.cluster_config import ClusterConfig
from rlhf.config.devices import precision_of
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.precision import error_bound
from rlhf.errors import UserError

Resources = dict[str, float]
ROLES = ("sampler", "scorer", "learner")
READY_S = 60.0
"""Longest wait for resources that the cluster has but others may hold."""


def resources_of(cluster: ClusterConfig, role: str) -> Resources:
    """Returns the resources that one actor of a role asks for: `sampler`, `scorer` or `learner`."""
    gpus = getattr(cluster, f"gpus_per_{role}")
    gpus = cluster.gpus_per_actor if gpus is None else gpus
    marked = {role: gpus or 1.0} if cluster.role_resources else {}
    return {"CPU": cluster.cpus_per_actor} | ({"GPU": gpus} if gpus else {}) | marked


def cpus_of(cluster: ClusterConfig) -> int:
    """Returns the CPUs that Ray offers on this machine alone: the machine's, or more if the actors ask for more."""
    actors = cluster.samplers + cluster.scorers + cluster.learners
    return max(os.cpu_count() or 1, int(actors * cluster.cpus_per_actor) + 2)


def bundles_of(cluster: ClusterConfig, roles: Sequence[str] = ROLES) -> list[Resources]:
    """Returns one bundle per sampler, then one per scorer, if they are among the roles."""
    counts = {"sampler": cluster.samplers, "scorer": cluster.scorers}
    return [resources_of(cluster, role) for role, count in counts.items() if role in roles for _ in range(count)]


def reserve(cluster: ClusterConfig, roles: Sequence[str] = ROLES, *, wait: bool) -> PlacementGroup | None:
    """Reserves resources for those of `roles` that are samplers or scorers; None if neither is.

    Ray Train places the learner ranks, but they are counted here. Raises UserError if the cluster cannot hold all:
    the message names the resources asked for, existing and missing. With `wait` it waits until nodes have joined.
    """
    learners = [resources_of(cluster, "learner")] * (cluster.min_learners or cluster.learners)
    bundles, asked = bundles_of(cluster, roles), _describe(cluster, roles)
    shortage = find_shortage([*bundles, *(learners if "learner" in roles else [])], _nodes(), cluster.placement)
    if shortage is not None and not wait:
        raise UserError(f"{shortage}; {asked}; ask for less in `cluster:`, or add --wait")
    if not bundles:
        return None
    group = placement_group(bundles, strategy=cluster.placement)
    started = time.monotonic()
    while not group.wait(10):
        waited = time.monotonic() - started
        if not wait and waited > READY_S:
            free = _format(ray.available_resources())
            remove_placement_group(group)
            raise UserError(f"others hold the resources: free are {free}; {asked}; or add --wait")
        print(f"waiting for resources since {waited:.0f} s: {asked}", file=sys.stderr)
    return group


def find_shortage(wanted: Sequence[Resources], nodes: Sequence[Mapping[str, float]], placement: str) -> str | None:
    """Describes the resources that the nodes lack for the bundles; None if all fit.

    The largest bundles are placed first, each on the first node with room; STRICT_PACK takes one node,
    STRICT_SPREAD one bundle per node.
    """
    if placement == "STRICT_PACK":
        wanted = [_sum(wanted)]
    free = [dict(node) for node in nodes]
    unplaced = []
    for bundle in sorted(wanted, key=lambda b: (b.get("GPU", 0.0), b.get("CPU", 0.0)), reverse=True):
        fitting = [n for n in free if all(n.get(key, 0.0) >= amount - 1e-9 for key, amount in bundle.items())]
        if not fitting:
            unplaced.append(bundle)
        elif placement == "STRICT_SPREAD":
            fitting[0].clear()
        else:
            for key, amount in bundle.items():
                fitting[0][key] -= amount
    if not unplaced:
        return None
    exists = "; ".join(f"node {number}: {_format(node)}" for number, node in enumerate(nodes)) or "no node"
    count = f"{len(unplaced)} of {len(wanted)} actors do not fit ({placement})"
    return f"{count}: missing {_format(_sum(unplaced))}; there are {exists}"


def _sum(bundles: Sequence[Resources]) -> Resources:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update(bundle)  # type: ignore[arg-type]
    return dict(total)


def start_dispatcher(
    config: RunConfig,
    reward: Path | None,
    group: PlacementGroup | None,
    incidents: Incidents,
    texts: TextCache | None,
    *,
    keep_images: bool = False,
) -> Dispatcher:
    """Starts samplers and scorers, each in its bundle of the group; without a group Ray chooses.

    Colocated ones open their networks in turn too, and sleep afterwards.
    """
    timeout_s, takes_turns = config.cluster.task_timeout_s, config.cluster.colocate is True
    samplers = _start_pool("sampler", RolloutSampler, config, group, incidents, config, texts)
    if takes_turns:
        send_to_sleep([samplers], timeout_s)
    scorers = _start_pool("scorer", RewardScorer, config, group, incidents, config, reward)
    if takes_turns:
        send_to_sleep([scorers], timeout_s)
    return Dispatcher(
        samplers=samplers,
        scorers=scorers,
        timeout_s=timeout_s,
        takes_turns=takes_turns,
        probe_tolerance=error_bound(config.align, precision_of(config.model)),
        keep_images=keep_images,
    )


def start_samplers(
    config: RunConfig, group: PlacementGroup | None, incidents: Incidents, texts: TextCache | None
) -> Dispatcher:
    """Starts samplers alone; their images are not scored."""
    samplers = _start_pool("sampler", RolloutSampler, config, group, incidents, config, texts)
    timeout_s = config.cluster.task_timeout_s
    return Dispatcher(samplers=samplers, scorers=None, timeout_s=timeout_s, sampling_method=lambda handle: handle.paint)


def _start_pool(
    role: str, actor: Any, config: RunConfig, group: PlacementGroup | None, incidents: Incidents, *arguments: object
) -> WorkerPool:
    cluster, asked = config.cluster, resources_of(config.cluster, role)
    options: dict[str, Any] = {"num_cpus": asked.pop("CPU"), "num_gpus": asked.pop("GPU", 0), "resources": asked}
    options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(cluster.threads_per_sampler)}}
    first, size = (0, cluster.samplers) if role == "sampler" else (cluster.samplers, cluster.scorers)

    def make(place: int) -> Any:
        where = None if group is None else PlacementGroupSchedulingStrategy(group, first + place)
        return ray.remote(**options, scheduling_strategy=where)(actor).remote(*arguments)

    return WorkerPool(role, make, size, incidents)


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _describe(cluster: ClusterConfig, roles: Sequence[str]) -> str:
    counts = {role: getattr(cluster, f"{role}s") for role in roles}
    asked = ", ".join(f"{count} {role}(s) of {_format(resources_of(cluster, role))}" for role, count in counts.items())
    return f"asked are {asked}, {cluster.placement}"


def _format(resources: Mapping[str, float]) -> str:
    shown = ("CPU", "GPU", "sampler", "scorer", "learner")
    return " ".join(f"{resources[key]:g} {key}" for key in shown if resources.get(key)) or "nothing"
