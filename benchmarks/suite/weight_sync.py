"""Measures publishing weights to two samplers on this machine: bytes, and seconds until both have proved them.

`python -m benchmarks.suite.weight_sync` does so for the whole UNet of stable-diffusion-inpainting at full size (859
million parameters) with random weights, which takes 10 GB of memory.
"""

import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("RAY_worker_niceness", "0")

import psutil  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402

from actors.rollout_sampler import RolloutSampler  # noqa: E402
from actors.session.ray_session import ray_session  # noqa: E402
from actors.weight_sync import WeightsAck, WeightsNotice, find_fault  # noqa: E402
from benchmarks.gpu.full_size_models import SD, build_policy, random_text  # noqa: E402
from benchmarks.measure import Figures, describe_machine, interleave, spread  # noqa: E402
from rlhf.config.run_config import AlignConfig, RunConfig  # noqa: E402
from rlhf.diffusion.families.text_cache import TextCache  # noqa: E402
from rlhf.diffusion.policy import Policy, load_policy, make_trainable  # noqa: E402
from rlhf.diffusion.precision import hold_frozen, rounded_parameters  # noqa: E402
from rlhf.diffusion.probe import probe_log_prob  # noqa: E402
from rlhf.diffusion.trained_weights import trainable_state  # noqa: E402

SAMPLERS = 2
KINDS = ("lora", "full")


def measure(rounds: int) -> Figures:
    """Publishes LoRA adapters and the whole UNet in turn, with checksum and probe as in `rlhf align`."""
    with ray_session(num_cpus=SAMPLERS):
        published = {kind: open_published(kind) for kind in KINDS}
        seconds = interleave({kind: publish for kind, (publish, _) in published.items()}, rounds)
        return {
            kind: {"megabytes": megabytes, "seconds": spread(seconds[kind])}
            for kind, (_, megabytes) in published.items()
        }


def open_published(trainable: str) -> tuple[Callable[[], object], float]:
    """Returns a function that publishes weights and waits until both samplers have proved them, and the megabytes."""
    config = RunConfig(align=AlignConfig.model_validate({"trainable": trainable}))
    share = 1 / len(KINDS)  # Share of a core; one kind is busy at a time.
    samplers = [ray.remote(num_cpus=share)(RolloutSampler).remote(config) for _ in range(SAMPLERS)]
    policy, align, versions = load_policy(config.model), config.align, iter(range(10**9))
    make_trainable(policy, trainable, rank=align.lora_rank, targets=align.lora_targets, seed=0)
    weights, probe = trainable_state(policy.network), probe_log_prob(policy, align)

    def publish() -> None:
        prove(samplers, WeightsNotice.publish(weights, next(versions), probe))

    return publish, sum(t.nbytes for t in weights.values()) / 1e6


def prove(samplers: list[ray.actor.ActorHandle], notice: WeightsNotice) -> None:
    """Returns when all samplers have proved the weights."""
    acks: list[WeightsAck] = ray.get([sampler.load_weights.remote(notice) for sampler in samplers])
    faults = [find_fault(ack, notice, 1e-6) for ack in acks]
    assert faults == [None] * len(samplers), faults


class FullSizeSampler(RolloutSampler):
    """A sampler of the published UNet, without a file of its weights."""

    @staticmethod
    def open_policy(config: RunConfig, texts: TextCache | None) -> Policy:
        """Returns a policy whose weights are whatever lies in memory, held in bf16."""
        return build_full_size("bf16")


def build_full_size(held: str) -> Policy:
    """Returns a policy of the published UNet that computes in bf16 and holds its weights `held`, without values."""
    policy, cpu = build_policy(SD, torch.device("meta"), "bf16"), torch.device("cpu")
    policy.device, policy.text = cpu, random_text(SD, cpu)
    policy.network.to(memory_format=torch.contiguous_format)
    hold_frozen(policy.network, held)
    policy.network.to_empty(device=cpu).requires_grad_(True)
    return policy


@torch.no_grad()
def measure_full_size(rounds: int) -> Figures:
    """Publishes a whole UNet of 859 million random weights as a learner in bf16 does; seconds by part."""
    config = RunConfig(align=AlignConfig(trainable="full"))
    torch.set_num_threads(config.cluster.threads_per_learner)
    policy = build_full_size("fp32")
    torch.manual_seed(0)
    for parameter in policy.network.parameters():
        parameter.normal_(std=0.02)
    rounded = {name for name, _ in rounded_parameters(policy.network)}
    seconds: dict[str, list[float]] = {"gather": [], "publish": [], "prove": [], "all": []}
    with ray_session(num_cpus=SAMPLERS):
        samplers = [ray.remote(num_cpus=1)(FullSizeSampler).remote(config) for _ in range(SAMPLERS)]
        probe = probe_log_prob(policy, config.align)
        for version in range(rounds + 1):
            times = [time.perf_counter()]
            weights = trainable_state(policy.network, rounded)
            times.append(time.perf_counter())
            notice = WeightsNotice.publish(weights, version, probe)
            del weights
            times.append(time.perf_counter())
            prove(samplers, notice)
            times.append(time.perf_counter())
            if version:  # The first one fills the object store's memory.
                parts = [times[i + 1] - times[i] for i in range(3)]
                for name, value in zip(seconds, [*parts, sum(parts)], strict=True):
                    seconds[name].append(value)
    parameters = sum(p.numel() for p in policy.network.parameters())
    return {
        "parameters": parameters,
        "megabytes": notice.size_bytes / 1e6,
        "chunks": len(notice.weights),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "load": psutil.getloadavg()[0],
        "machine": describe_machine(),
    }


if __name__ == "__main__":
    print(json.dumps(measure_full_size(rounds=3), indent=2))
