"""Publishing weights to two samplers on this machine: bytes, and seconds until both have proved what they hold."""

import os
import time

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")

import ray  # noqa: E402

from actors.messages import WeightsNotice  # noqa: E402
from actors.rollout_sampler import RolloutSampler  # noqa: E402
from benchmarks.measure import Figures, spread  # noqa: E402
from rlhf.config import AlignConfig, RunConfig  # noqa: E402
from rlhf.policy import load_policy, make_trainable, trainable_state  # noqa: E402

SAMPLERS = 2


def measure(rounds: int) -> Figures:
    """LoRA adapters and the whole UNet; without the canary, whose forward pass is no part of the transport."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=SAMPLERS)
    try:
        return {kind: _measure(kind, rounds) for kind in ("lora", "full")}
    finally:
        ray.shutdown()


def _measure(trainable: str, rounds: int) -> Figures:
    config = RunConfig(align=AlignConfig.model_validate({"trainable": trainable}))
    samplers = [ray.remote(num_cpus=1)(RolloutSampler).remote(config) for _ in range(SAMPLERS)]
    policy, align = load_policy(config.model), config.align
    make_trainable(policy, trainable, rank=align.lora_rank, targets=align.lora_targets, seed=0)
    weights, seconds = trainable_state(policy.unet), []
    for version in range(rounds + 1):
        started = time.perf_counter()
        notice = WeightsNotice.publish(weights, version)
        acks = ray.get([sampler.load_weights.remote(notice) for sampler in samplers])
        seconds.append(time.perf_counter() - started)
        assert {ack.checksum for ack in acks} == {notice.checksum}
    for sampler in samplers:
        ray.kill(sampler)
    return {"megabytes": sum(t.nbytes for t in weights.values()) / 1e6, "seconds": spread(seconds[1:])}
