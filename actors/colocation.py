"""Colocation: decides whether the roles of a run take turns on its GPUs, and their shares of a single one."""

import math
import sys
from typing import Any

import ray

from actors.resources import ROLES, resources_of
from rlhf.alignment.planning.process_needs import takes_turns
from rlhf.config.run_config import RunConfig
from rlhf.errors import UserError


def gpus_of_cluster() -> float:
    """Returns the GPUs of the Ray cluster, busy or not."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def share_gpus(config: RunConfig, gpus: float) -> RunConfig:
    """Returns the configuration with `cluster.colocate` decided: True or False.

    With True on a single GPU, actors for whom none is asked get equal shares of it. Raises UserError if several learner
    ranks would share a single GPU, which NCCL refuses.
    """
    cluster, colocate = config.cluster, config.cluster.colocate
    on_gpu = [role for role in ROLES if "GPU" in resources_of(cluster, role)]
    is_single = gpus == 1 and config.model.device != "cpu"
    if colocate == "auto":
        colocate = takes_turns(config, gpus)
    if colocate and is_single and cluster.learners > 1:
        raise UserError(
            f"cluster.learners: {cluster.learners} ranks cannot share one GPU (NCCL refuses); set it to 1, "
            "or cluster.colocate to false"
        )
    chosen: dict[str, Any] = {"colocate": colocate}
    if colocate and is_single and not on_gpu:
        actors = cluster.samplers + cluster.scorers + cluster.learners
        chosen["gpus_per_actor"] = math.floor(1e4 / actors) / 1e4  # Ray counts ten-thousandths.
    if colocate:
        print("align: samplers, scorers and learner take turns on their GPUs (cluster.colocate)", file=sys.stderr)
    return config.model_copy(update={"cluster": cluster.model_copy(update=chosen)})


def without_turns(config: RunConfig) -> RunConfig:
    """Returns the configuration of a run that has learners alone."""
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"colocate": False})})
