"""How well a run uses its devices: the FLOPs of its passes over a measured rate, its pixels a second, its memory."""

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from rlhf.alignment.disk_need import trained_network_on_meta
from rlhf.alignment.planning.pass_cost import count_flops
from rlhf.config.cluster_config import ClusterConfig
from rlhf.config.run_config import AlignConfig, ModelConfig, RunConfig
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.trained_weights import without_adapters
from rlhf.diffusion.trajectories import Recording

PRODUCTS = 4
SIDES = {"cuda": 8192, "cpu": 512}
"""Side of the square matrix products: some ms each on a GPU, and on a core."""


@dataclass(frozen=True, kw_only=True)
class PassFlops:
    """FLOPs of one image's pass through the network: two per multiplication and addition, without recomputation."""

    forward: int
    """With adapters that are not merged."""
    base: int
    """Forward without adapters."""
    backward: int


def measure_rate(device: torch.device, precision: str) -> float:
    """Returns the FLOP/s of square matrix products in `fp32` or `bf16`: the best of a few, after one to warm up."""
    side, dtype = SIDES.get(device.type, SIDES["cpu"]), torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for number in range(PRODUCTS + 1):
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        if number:
            best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def device_rate(cluster: ClusterConfig, policy: Policy) -> float:
    """Returns the FLOP/s that utilisation is a share of: `cluster.peak_tflops`, or what the policy's device reaches."""
    given = cluster.peak_tflops
    return measure_rate(policy.device, policy.precision) if given is None else given * 1e12


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process has held so far: on the GPU, or where there is none, resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def count_passes(policy: Policy, model: ModelConfig, align: AlignConfig, rolled_out: Recording) -> PassFlops:
    """Counts the passes of images like `rolled_out` on the meta device, which takes neither memory nor weights.

    True guidance, which passes each image twice, counts twice.
    """
    network = trained_network_on_meta(model.path, align)
    latents, condition = (part[:1].to("meta") for part in (rolled_out.latents[0], rolled_out.condition))
    inputs = (latents, torch.zeros(1, device="meta"), condition, _first(rolled_out.text or policy.text).to("meta"))
    passes = 1 if policy.guidance is None else 2

    def count(*, backward: bool) -> int:
        def run() -> None:
            output = policy.family.predict(network, *inputs, policy.precision)
            if backward:
                output.sum().backward()

        with torch.set_grad_enabled(backward):
            return passes * count_flops(run)

    forward = count(backward=False)
    both = count(backward=True)
    base = forward
    if align.trainable == "lora":
        with without_adapters(network):
            base = count(backward=False)
    return PassFlops(forward=forward, base=base, backward=both - forward)


def _first(text: TextEmbedding) -> TextEmbedding:
    pooled, mask = (None if part is None else part[:1] for part in (text.pooled, text.mask))
    return replace(text, embedding=text.embedding[:1], pooled=pooled, mask=mask)


class Usage:
    """What an update of a run reaches of its devices, as rank 0 sees it."""

    def __init__(self, policy: Policy, config: RunConfig, learners: int) -> None:
        """Find the rate of this rank's device, which stands for those of the others."""
        self._policy, self._config, self._learners = policy, config, learners
        self._rate = device_rate(config.cluster, policy)
        self._flops: PassFlops | None = None

    def of_update(self, metrics: Mapping[str, float], rolled_out: Recording) -> dict[str, float]:
        """Utilisation and memory, from an update's own metrics and one of its recordings.

        The size of the first update's pictures stands for all; buckets have about one area.
        """
        if self._flops is None:
            self._flops = count_passes(self._policy, self._config.model, self._config.align, rolled_out)
        rates = {"learner": self._rate, "sampler": metrics.get("sampler_device_flops", 0.0)}
        processes = {"learner": self._learners, "sampler": self._config.cluster.samplers}
        figures = utilisation(metrics, self._flops, rates=rates, processes=processes)
        return figures | {"learner_memory_bytes": peak_memory(self._policy.device), "learner_device_flops": self._rate}


def utilisation(
    metrics: Mapping[str, float], flops: PassFlops, *, rates: Mapping[str, float], processes: Mapping[str, int]
) -> dict[str, float]:
    """Returns the share of the measured rate that samplers and learners reach over rollout and training, in an update.

    `rates` are those of one device of each role, and `processes` their numbers. A replay has no samplers.
    """
    learned = (
        metrics["learner_forward_images"] * flops.forward
        + metrics["base_forward_images"] * flops.base
        + metrics["backward_images"] * flops.backward
    )
    shares = {"learner_utilisation": learned / (metrics["train_s"] * processes["learner"] * rates["learner"])}
    if rates.get("sampler"):
        sampled = metrics["sampler_forward_images"] * flops.forward
        reached = metrics["rollout_s"] * processes["sampler"] * rates["sampler"]
        shares["sampler_utilisation"] = sampled / reached
    return shares
