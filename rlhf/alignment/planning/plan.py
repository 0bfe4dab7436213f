"""The plan of a run: what each process holds, what travels, how long an update takes, and whether it fits."""

import math
from dataclasses import dataclass
from pathlib import Path

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.disk_need import FLOAT_BYTES, disk_bytes
from rlhf.alignment.planning.idle_shares import Balance, ImageCosts, simulate
from rlhf.alignment.planning.machine import GPUS_PER_NODE, Rates
from rlhf.alignment.planning.model_costs import ModelCosts, count_model, planned_place
from rlhf.alignment.planning.process_needs import CONTEXT_BYTES, ProcessNeed, gpus_of, needs_of, takes_turns
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.families.open_family import network_part
from rlhf.errors import UserError

ROLES = ("sampler", "scorer", "learner")
SCORE_FLOPS = 2e11
"""Scoring an image by networks, in FLOPs at the rate of rollouts. Stated: resizing and sending take more than CLIP."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that travel in an update."""

    weights: int
    """What is published; every node with a sampler fetches it once."""
    images: int
    """From samplers to scorers."""
    trajectories: int
    """From samplers to learners."""
    between_learners: int
    """What each learner rank sends to the others."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time and money, at given rates."""

    update_s: float
    rollout_s: float
    training_s: float
    cost_per_1000_images: float | None
    """In the currency of the price; None without one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take."""

    model: str
    pipeline: str
    """Class of the pipeline."""
    size_px: tuple[int, int]
    """Height and width."""
    precision: str
    images: int
    """Images of an update."""
    processes: tuple[ProcessNeed, ...]
    gpus: int
    """GPUs that the processes fill."""
    are_turns: bool
    """Whether the roles of a GPU take turns: the others sleep in host memory."""
    largest_gpu_bytes: int
    """The most that the processes of one GPU hold together, with allowances."""
    largest_gpu: str
    """The roles there."""
    nodes: int
    node_bytes: int
    """Host memory of a node, with its share of the object store."""
    object_store_bytes: int
    """Images, trajectories and weights of the updates that are there at once."""
    disk_bytes: int
    traffic: Traffic
    idle_shares: dict[str, float]
    timing: Timing | None
    """None without rates."""
    problems: tuple[str, ...] = ()
    """What does not fit, each with its remedy."""


def make_plan(
    config: RunConfig,
    *,
    gpus: int | None = None,
    size_px: tuple[int, int] | None = None,
    rates: Rates | None = None,
    price_per_gpu_hour: float | None = None,
    roles: tuple[str, ...] = ROLES,
) -> Plan:
    """Plans `rlhf align` for pictures of `size_px` (height, width; default `prompts.size_px`) on so many `gpus`.

    Raises UserError if the model's configuration cannot be read, or the settings contradict it.
    """
    check_splits(config)
    size, precision = size_px or (config.prompts.size_px,) * 2, planned_precision(config)
    costs = count_model(config.model, config.align, size, precision)
    processes = tuple(needs_of(config, costs, precision, roles if config.align.algorithm != "dpo" else ("learner",)))
    room = _fill(config, processes, gpus)
    nodes, traffic = max(1, math.ceil(room.gpus / GPUS_PER_NODE)), _count_traffic(config, costs, size)
    store = (1 + config.align.max_staleness) * (traffic.weights + traffic.images + traffic.trajectories)
    balance = simulate(config, _image_costs(costs, rates or Rates.relative(), scores=_has_networks(processes)))
    return Plan(
        model=config.model.path,
        pipeline=costs.pipeline,
        size_px=size,
        precision=precision,
        images=config.align.prompts_per_update * config.align.samples_per_prompt,
        processes=processes,
        gpus=room.gpus,
        are_turns=room.are_turns,
        largest_gpu_bytes=room.bytes,
        largest_gpu=" + ".join(room.roles),
        nodes=nodes,
        node_bytes=(sum(need.count * need.host_bytes for need in processes) + room.asleep_bytes + store) // nodes,
        object_store_bytes=store,
        disk_bytes=disk_bytes(config.align, costs.trained),
        traffic=traffic,
        idle_shares=balance.idle,
        timing=None if rates is None else _time(config, balance, room.gpus, price_per_gpu_hour),
    )


def planned_precision(config: RunConfig) -> str:
    """`fp32` or `bf16`: what `model.precision` comes to where the learners run, which may be another machine."""
    if config.model.precision != "auto":
        return config.model.precision
    return "bf16" if gpus_of(config.cluster, "learner") and config.model.device != "cpu" else "fp32"


def check_splits(config: RunConfig) -> None:
    """Raises UserError if ZeRO stage 3 cannot split the model's files over the learner ranks."""
    place = planned_place(config.model.path)
    if config.align.zero_stage < 3 or not isinstance(place, Path) or not place.is_dir():
        return
    part = place / network_part(place)
    if any(part.glob("*.bin")) and not any(part.glob("*.safetensors")):
        raise UserError(
            f"{part}: align.zero_stage 3 splits safetensors files layer by layer, and there are none; "
            "save the pipeline again with save_pretrained, or set a lower stage"
        )


@dataclass(frozen=True, kw_only=True)
class _Room:
    """How the processes lie on GPUs."""

    gpus: int
    are_turns: bool
    bytes: int
    """On the fullest GPU, by `roles`."""
    roles: list[str]
    asleep_bytes: int
    """In host memory, of all that may sleep."""


def _fill(config: RunConfig, processes: tuple[ProcessNeed, ...], gpus: int | None) -> _Room:
    filled = _pack(processes)
    are_turns = takes_turns(config, len(filled) if gpus is None else gpus)
    sizes = [_on_gpu(own, are_turns=are_turns) for own in filled]
    fullest = max(range(len(filled)), key=lambda gpu: sizes[gpu], default=None)
    return _Room(
        gpus=len(filled),
        are_turns=are_turns,
        bytes=0 if fullest is None else sizes[fullest],
        roles=[] if fullest is None else [need.role for need in filled[fullest]],
        asleep_bytes=sum(need.count * need.device_bytes for need in processes if need.gpus) if are_turns else 0,
    )


def _on_gpu(processes: list[ProcessNeed], *, are_turns: bool) -> int:
    if not are_turns:
        return sum(need.gpu_bytes for need in processes)
    roles = {need.role: sum(other.gpu_bytes for other in processes if other.role == need.role) for need in processes}
    awake = max(roles, key=lambda role: roles[role])
    return roles[awake] + CONTEXT_BYTES * sum(need.role != awake for need in processes)


def _pack(processes: tuple[ProcessNeed, ...]) -> list[list[ProcessNeed]]:
    """The processes of each GPU: the largest shares first, each on the first GPU with room, as Ray places them."""
    gpus: list[list[ProcessNeed]] = []
    for need in sorted(processes, key=lambda need: need.gpus, reverse=True):
        for _ in range(need.count if need.gpus else 0):
            free = [own for own in gpus if sum(other.gpus for other in own) + need.gpus <= 1 + 1e-9]
            if free:
                free[0].append(need)
            else:
                gpus += [[need] for _ in range(math.ceil(need.gpus))]
    return gpus


def _count_traffic(config: RunConfig, costs: ModelCosts, size: tuple[int, int]) -> Traffic:
    align, ranks = config.align, config.cluster.learners
    images, plan = align.prompts_per_update * align.samples_per_prompt, algorithm_of(align).plan_rollout(align, 0, 0)
    passes = algorithm_of(align).passes_per_batch(align)
    latents = 1 + 2 * passes if plan.noised_steps else passes * (2 + plan.keeps_means)
    recorded = images * (latents * costs.latents_bytes + costs.condition_bytes)
    others, trained = (ranks - 1) / ranks, FLOAT_BYTES * costs.trained * align.epochs_per_update
    sent = 2 * others * trained
    if align.zero_stage == 3:
        micro_batches = images // align.micro_batch_size // ranks * passes * align.epochs_per_update
        sent += others * (2 + (costs.base is not None)) * micro_batches * (costs.frozen_bytes + trained)
    is_rounded = align.trainable == "full" and planned_precision(config) == "bf16"
    return Traffic(
        weights=(FLOAT_BYTES // 2 if is_rounded else FLOAT_BYTES) * costs.trained,
        images=images * 3 * size[0] * size[1],
        trajectories=recorded + align.prompts_per_update * costs.caption_bytes,
        between_learners=int(sent),
    )


def _has_networks(processes: tuple[ProcessNeed, ...]) -> bool:
    return any(need.role == "scorer" and need.parameters for need in processes)


def _image_costs(costs: ModelCosts, rates: Rates, *, scores: bool) -> ImageCosts:
    images = costs.images
    base = 0 if costs.base is None else costs.base.flops
    return ImageCosts(
        step=costs.denoising.flops / images / rates.rollout,
        ends=(costs.decoding.flops + costs.encoding.flops) / images / rates.rollout,
        score=scores * SCORE_FLOPS / rates.rollout,
        train=(costs.training.flops + base) / images / rates.training,
    )


def _time(config: RunConfig, balance: Balance, gpus: int, price: float | None) -> Timing:
    images = config.align.prompts_per_update * config.align.samples_per_prompt
    hours = balance.update * gpus / 3600
    return Timing(
        update_s=balance.update,
        rollout_s=balance.rollout,
        training_s=balance.training,
        cost_per_1000_images=None if price is None else 1000 * hours * price / images,
    )
