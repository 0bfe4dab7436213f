"""Measures publishing weights to two samplers on this machine: bytes, and seconds until both have proved them."""

import os
from collections.abc import Callable

os.environ.setdefault("RAY_worker_niceness", "0")

import ray  # noqa: E402

from actors.rollout_sampler import RolloutSampler  # noqa: E402
from actors.session.ray_session import ray_session  # noqa: E402
from actors.weight_sync import WeightsNotice
from benchmarks.measure import Figures, interleave, spread  # noqa: E402
from rlhf.config.run_config import AlignConfig, RunConfig  # noqa: E402
from rlhf.diffusion.policy import load_policy, make_trainable  # noqa: E402
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
        notice = WeightsNotice.publish(weights, next(versions), probe)
        acks = ray.get([sampler.load_weights.remote(notice) for sampler in samplers])
        assert {ack.checksum for ack in acks} == {notice.checksum}

    return publish, sum(t.nbytes for t in weights.values()) / 1e6
