"""What a process of each role holds, on its device and in host memory."""

from dataclasses import dataclass

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.disk_need import FLOAT_BYTES
from rlhf.alignment.learner import needs_base_copy, reads_base
from rlhf.alignment.planning.model_costs import ModelCosts
from rlhf.config.cluster_config import ClusterConfig
from rlhf.config.run_config import RunConfig

CONTEXT_BYTES = 1_000_000_000
"""Allowance for CUDA's context and its libraries' workspaces, on each GPU process; not measured here."""
FRAGMENTS = 0.1
"""Allowance for what PyTorch's allocator rounds up and keeps, as a share of the passes' bytes; not measured here."""
LIBRARIES_BYTES = 800_000_000
"""Host memory of a process with its libraries alone: four processes of a small run take 3.2 GB."""
BUCKET_BYTES = 500_000_000 * FLOAT_BYTES
"""DeepSpeed's bucket of gradients at ZeRO stages 1 and 2."""
REWARDS = {
    "clip_score": 427_616_513,
    "aesthetic": 427_616_513,
    "pick_score": 986_109_441,
    "hpsv2": 986_109_441,
    "image_reward": 478_000_000,
}
"""Numbers in the networks of published rewards: CLIP ViT-L/14 and ViT-H/14, and about those of ImageReward."""
BACKBONES = {"small": 0, "efficientnet-lite0": 4_652_008, "openai/clip-vit-base-patch32": 87_456_000}
LARGE_BACKBONE = 303_179_776
"""Numbers in CLIP ViT-L/14's vision tower, which stands for backbones that are not listed."""


@dataclass(frozen=True, kw_only=True)
class ProcessNeed:
    """One process of a role. Bytes are at the peak."""

    role: str
    count: int
    """Number of such processes."""
    gpus: float
    """GPUs that Ray gives to each."""
    parameters: int
    dtype: str
    """How most of them are held."""
    device: dict[str, int]
    """Bytes on the GPU, or in host memory without one, by what they hold."""
    host: dict[str, int]
    """Bytes in host memory besides."""
    opening_bytes: int
    """Bytes on the device while the text encoders are open, before anything else is."""

    @property
    def device_bytes(self) -> int:
        """The most that lies on the device."""
        return max(sum(self.device.values()), self.opening_bytes)

    @property
    def gpu_bytes(self) -> int:
        """The most on a GPU, with the allowances; 0 without one."""
        if not self.gpus:
            return 0
        return self.device_bytes + CONTEXT_BYTES + int(FRAGMENTS * self.device.get("passes", 0))

    @property
    def host_bytes(self) -> int:
        """The most in host memory."""
        return sum(self.host.values()) + (0 if self.gpus else self.device_bytes)


def gpus_of(cluster: ClusterConfig, role: str) -> float:
    """GPUs that one process of a role asks for."""
    own: float | None = getattr(cluster, f"gpus_per_{role}")
    return cluster.gpus_per_actor if own is None else own


def takes_turns(config: RunConfig, gpus: float) -> bool:
    """Whether the roles take turns on their GPUs in a cluster of so many, by `cluster.colocate`."""
    cluster, roles = config.cluster, ("sampler", "scorer", "learner")
    if cluster.colocate != "auto":
        return cluster.colocate
    is_single = gpus == 1 and config.model.device != "cpu"
    asking = sum(gpus_of(cluster, role) > 0 for role in roles)
    return is_single and asking != 1 and cluster.learners == 1 and config.align.max_staleness == 0


def needs_of(config: RunConfig, costs: ModelCosts, precision: str, roles: tuple[str, ...]) -> list[ProcessNeed]:
    """The needs of the processes of some `roles`."""
    needs = {"sampler": _sampler, "scorer": _scorer, "learner": _learner}
    return [needs[role](config, costs, precision) for role in roles]


def _opening(costs: ModelCosts) -> dict[str, int]:
    return {"libraries": LIBRARIES_BYTES, "opening": FLOAT_BYTES * costs.parameters}


def _sampler(config: RunConfig, costs: ModelCosts, precision: str) -> ProcessNeed:
    align, cluster = config.align, config.cluster
    is_full = align.trainable == "full"
    # By default the copy is held where it takes a quarter of what is free; in the plan it counts only where it is set.
    is_merged = not is_full and align.merged_sampling is True and precision == "fp32"
    steps = len(algorithm_of(align).plan_rollout(align, 0, config.seed).trained_steps)
    kept = costs.images * ((3 * steps + 3) * costs.latents_bytes + costs.condition_bytes)
    peak = max(costs.denoising.peak_bytes, costs.decoding.peak_bytes, costs.encoding.peak_bytes)
    return ProcessNeed(
        role="sampler",
        count=cluster.samplers,
        gpus=gpus_of(cluster, "sampler"),
        parameters=costs.parameters,
        dtype="fp32" if is_full else precision,
        device={
            "network": costs.frozen_bytes + FLOAT_BYTES * costs.trained,
            "merged copy": costs.frozen_bytes if is_merged else 0,
            "VAE": costs.vae_bytes,
            "rollout": kept,
            "passes": peak,
        },
        host=_opening(costs),
        opening_bytes=costs.text_bytes,
    )


def _learner(config: RunConfig, costs: ModelCosts, precision: str) -> ProcessNeed:
    align, cluster = config.align, config.cluster
    ranks, stage, trained = cluster.learners, align.zero_stage, FLOAT_BYTES * costs.trained
    split = ranks if stage == 3 else 1
    base = FLOAT_BYTES * costs.parameters // (2 if precision == "bf16" else 1) if needs_base_copy(align) else 0
    states = 2 * trained // (ranks if stage else 1)
    if stage in (1, 2):
        states += trained // ranks + BUCKET_BYTES
    passes = costs.training.peak_bytes + (costs.images * costs.latents_bytes if reads_base(align) else 0)
    if stage == 3:
        passes += 2 * FLOAT_BYTES * costs.largest_layer
    is_lagging = algorithm_of(align).objective.old_policy_decay(align, 0) is not None
    return ProcessNeed(
        role="learner",
        count=ranks,
        gpus=gpus_of(cluster, "learner"),
        parameters=costs.parameters + (costs.trained if align.trainable == "lora" else 0),
        dtype="fp32" if align.trainable == "full" else precision,
        device={
            "network": (costs.frozen_bytes + trained) // split,
            "base copy": base // split,
            "gradients": trained // (ranks if stage >= 2 else 1),
            "optimizer": states,
            "passes": max(passes, costs.base.peak_bytes if costs.base else 0),
        },
        host=(_opening(costs) if stage < 3 else {"libraries": LIBRARIES_BYTES, "opening": 4 * costs.largest_layer})
        # The averaged weights, those that are published, nft's old policy, and a checkpoint while it is written.
        | {"averages and published weights": trained // split * (3 if is_lagging else 2) + trained},
        opening_bytes=costs.text_bytes,
    )


def _scorer(config: RunConfig, costs: ModelCosts, precision: str) -> ProcessNeed:
    kinds = [entry.kind for entry in config.rewards] or ["model"]
    own = BACKBONES.get(config.reward.backbone, LARGE_BACKBONE)
    parameters = sum(own if kind == "model" else REWARDS.get(kind, 0) for kind in kinds)
    return ProcessNeed(
        role="scorer",
        count=config.cluster.scorers,
        gpus=gpus_of(config.cluster, "scorer"),
        parameters=parameters,
        dtype="fp32",
        device={"network": FLOAT_BYTES * parameters, "passes": costs.images * 3 * 224 * 224 * FLOAT_BYTES * 8},
        host={"libraries": LIBRARIES_BYTES, "opening": FLOAT_BYTES * parameters},
        opening_bytes=0,
    )
