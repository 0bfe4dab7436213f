"""Places the actors of a run: reserves all resources at once, and checks them before anything starts."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.pool.dispatch import Dispatcher
from actors.pool.worker_pool import WorkerPool, send_to_sleep
from actors.resources import ROLES, bundles_of, describe_actors, find_missing, format_resources, resources_of
from actors.reward_scorer import RewardScorer
from actors.rollout_sampler import RolloutSampler
from actors.telemetry.incidents import Incidents
from rlhf.config.cluster_config import ClusterConfig
from rlhf.config.devices import precision_of
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.precision import error_bound
from rlhf.errors import UserError

READY_S = 60.0
"""Longest wait for resources that the cluster has but others may hold."""


def cpus_of(cluster: ClusterConfig) -> int:
    """Returns the CPUs that Ray offers on this machine alone: the machine's, or more if the actors ask for more."""
    actors = cluster.samplers + cluster.scorers + cluster.learners
    return max(os.cpu_count() or 1, int(actors * cluster.cpus_per_actor) + 2)


def reserve(cluster: ClusterConfig, roles: Sequence[str] = ROLES, *, wait: bool) -> PlacementGroup | None:
    """Reserves resources for those of `roles` that are samplers or scorers; None if neither is.

    Ray Train places the learner ranks, but they are counted here. Raises UserError if the cluster cannot hold all:
    the message names the resources asked for, existing and missing. With `wait` it waits until nodes have joined.
    """
    bundles, asked = bundles_of(cluster, roles), describe_actors(cluster, roles)
    shortage = find_missing(cluster, roles, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if shortage is not None and not wait:
        raise UserError(f"{shortage}; {asked}; ask for less in `cluster:`, or add --wait")
    if not bundles:
        return None
    group = placement_group(bundles, strategy=cluster.placement)
    started = time.monotonic()
    while not group.wait(10):
        waited = time.monotonic() - started
        if not wait and waited > READY_S:
            free = format_resources(ray.available_resources())
            remove_placement_group(group)
            raise UserError(f"others hold the resources: free are {free}; {asked}; or add --wait")
        print(f"waiting for resources since {waited:.0f} s: {asked}", file=sys.stderr)
    return group


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
