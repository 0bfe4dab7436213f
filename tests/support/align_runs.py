"""What tests compare of an alignment: its figures without timings, and its policies."""

from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file

from actors.coordinator import SamplingMetrics
from rlhf.config.run_config import RunConfig
from rlhf.reports.metrics_log import read_metrics

TIMINGS = {
    "rollout_s",
    "images_per_s",
    "sampler_idle_share",
    "scorer_idle_share",
    "tasks_repeated",
    "train_s",
    "update_s",
    "weights_sync_s",
    "queue_to_sample",
    "queue_to_score",
    *("learner_utilisation", "sampler_utilisation", "pixels_per_s"),
    *(
        "learner_memory_bytes",
        "sampler_memory_bytes",
        "scorer_memory_bytes",
        "learner_device_flops",
        "sampler_device_flops",
    ),
}


def figures(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without timings."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)]


def replayed_figures(run: Path) -> list[dict]:
    """The figures that a replay of dumped rollouts, which has no samplers, gives as well."""
    of_sampling = {field.name for field in fields(SamplingMetrics)}
    return [{k: v for k, v in line.items() if k not in of_sampling} for line in figures(run)]


def lasting_figures(run: Path) -> list[dict]:
    """The figures that neither time nor repairs change."""
    return [{k: v for k, v in line.items() if k != "learners" and "restarts" not in k} for line in figures(run)]


def policy_tensors(run: Path, version: int) -> torch.Tensor:
    """The trained half of the adapters (B starts at 0, so all of it is learnt), as one vector."""
    state = load_file(next((run / f"policy-{version:06d}").glob("*.safetensors")))
    return torch.cat([state[name].flatten() for name in sorted(state) if "lora_B" in name])


def with_cluster(config: RunConfig, **cluster: object) -> RunConfig:
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=cluster)})
