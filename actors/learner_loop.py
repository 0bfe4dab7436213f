"""What every learner rank runs under Ray Train: the whole of the training, in one function."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero

from actors.coordinator import Coordinator
from actors.incidents import Incidents
from actors.messages import BatchShare, UpdateWork
from actors.overlapped_coordinator import OverlappedCoordinator
from actors.placement import start_dispatcher
from actors.rollout_replay import AnyCoordinator, DumpingCoordinator, ReplayCoordinator
from actors.telemetry import Telemetry
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.rollout_dump import RolloutDump
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_folders import drop_policies
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.probe import probe_log_prob
from rlhf.errors import UserError
from rlhf.reports.grids import save_rollout_grid
from rlhf.reports.metrics_log import MetricsLog, read_metrics
from rlhf.storage.atomic_files import require_room, writing
from rlhf.storage.images import from_8bit
from rlhf.storage.url_path import explained


def learner_loop(setup: dict[str, Any]) -> str | None:
    """Train; returns None, or what the user can put right: Ray Train would start again after an exception."""
    try:
        train(setup)
    except UserError as error:
        return str(error)
    return None


def train(setup: dict[str, Any]) -> None:
    """Rollout, score, train, publish; again for every update.

    `setup` holds `config`, the driver's `run_id`, the folders `prompts`, `reward` and `out`, local or at URLs, the
    policy folder to `start` from or None, the placement `group`, and the folder that rollouts are written to
    (`dump`) or read from (`replay`) or None. Rank 0 also coordinates, and owns samplers and scorers; it waits for
    them, the other ranks wait for it. A checkpoint is complete only when all ranks have reported it; ranks that
    were restarted, as many as there then are, go on from the last one.
    """
    config: RunConfig = setup["config"]
    align, out = config.align, setup["out"]
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.cluster.threads_per_learner)
    incidents = Incidents(out)
    coordinator = _start_coordinator(setup, ranks, incidents) if rank == 0 else None
    learner, first = _start_learner(config, ranks, setup["start"])
    if rank == 0:
        repeated = len(read_metrics(out)) - first
        incidents.note_start(setup["run_id"], f"{ranks} rank(s) go on from update {first}; {repeated} are repeated")
    log = MetricsLog(out, first_update=first) if rank == 0 else None
    telemetry = Telemetry(out) if rank == 0 else None

    for update in range(first, align.updates):
        started = time.perf_counter()
        weights = learner.acting_weights()
        is_canary = (update - first) % config.cluster.canary_every == 0
        with learner.acting() as policy:
            canary = probe_log_prob(policy, align) if is_canary else None
        collect = None if coordinator is None else partial(coordinator.collect, update, weights, canary)
        work, batches = receive(rank, collect)
        train_started = time.perf_counter()
        metrics = learner.train(batches, is_on_policy=work.metrics["staleness"] == 0)
        metrics |= work.metrics | {"update": update + 1, "train_s": time.perf_counter() - train_started}
        metrics |= {"update_s": time.perf_counter() - started, "learners": ranks}
        is_checkpoint = (update + 1) % align.checkpoint_every == 0 or update + 1 == align.updates
        with agreed():
            if log is not None and telemetry is not None:
                log.write(metrics)
                telemetry.publish(metrics)
            if is_checkpoint and rank == 0:
                _write_results(learner, config, out, update + 1, work)
        _report(learner, metrics, update + 1, out if is_checkpoint else None)


def _start_coordinator(setup: dict[str, Any], ranks: int, incidents: Incidents) -> AnyCoordinator:
    if setup["replay"] is not None:
        return ReplayCoordinator(RolloutDump(setup["replay"]), incidents, ranks=ranks)
    coordinator = _start_sampling(setup, incidents, ranks)
    return coordinator if setup["dump"] is None else DumpingCoordinator(coordinator, RolloutDump(setup["dump"]))


def _start_sampling(setup: dict[str, Any], incidents: Incidents, ranks: int) -> AnyCoordinator:
    config, out = setup["config"], setup["out"]
    is_dumped = setup["dump"] is not None
    dispatcher = start_dispatcher(config, setup["reward"], setup["group"], incidents, keep_images=is_dumped)
    prompts = PromptTable(setup["prompts"], split="train")
    coordinator = Coordinator(config, prompts, dispatcher, incidents, ranks=ranks, out=out)
    if config.align.max_staleness == 0:
        return coordinator
    ahead, updates = config.align.max_staleness, config.align.updates
    return OverlappedCoordinator(coordinator, max_staleness=ahead, updates=updates)


def _start_learner(config: RunConfig, ranks: int, start: Path | None) -> tuple[Learner, int]:
    """The learner, and the updates that it has had."""
    align = config.align
    micro_batches = -(-align.prompts_per_update * align.samples_per_prompt // align.micro_batch_size // ranks)
    passes = algorithm_of(align).passes_per_batch(align)
    policy, checkpoint = load_policy(config.model), ray.train.get_checkpoint()

    def make(*, is_resized: bool) -> Learner:
        batches = micro_batches * passes
        return Learner(policy, align, micro_batches=batches, seed=config.seed, start=start, is_resized=is_resized)

    if checkpoint is None:
        return make(is_resized=False), 0
    with checkpoint.as_directory() as folder:
        saved_ranks = json.loads((Path(folder) / "metrics.json").read_text())["learners"]
        learner = make(is_resized=saved_ranks != ranks and align.zero_stage > 0)
        return learner, learner.load(Path(folder))


def receive(rank: int, collect: Callable[[], UpdateWork] | None) -> tuple[UpdateWork, list[TrainingBatch]]:
    """This rank's share of what rank 0 collects; the others have no `collect`.

    It is collected again where a node was lost that held some of it. Raises rank 0's UserError on all ranks.
    """
    while True:
        work: UpdateWork | UserError | None = None
        if collect is not None:
            try:
                work = collect()
            except UserError as error:
                work = error
        work = broadcast_from_rank_zero(work)
        if isinstance(work, UserError):
            raise work
        assert work is not None
        batches = _fetch(work.shares[rank])
        if _all_have(batches is not None):
            assert batches is not None
            return work, batches


def _fetch(shares: list[BatchShare]) -> list[TrainingBatch] | None:
    """None where a trajectory is lost."""
    try:
        trajectories = ray.get([share.trajectories[0] for share in shares])
    except ray.exceptions.ObjectLostError:
        return None
    return [
        TrainingBatch(trajectories=t, advantages=s.advantages, trust_weights=s.trust_weights, weight=s.weight)
        for t, s in zip(trajectories, shares, strict=True)
    ]


@contextmanager
def agreed() -> Iterator[None]:
    """A UserError of one rank in the block is raised on all, which would wait for that rank for ever."""
    problem = None
    try:
        yield
    except UserError as error:
        problem = error
    if not _all_have(problem is None):
        raise problem or UserError("align: a learner rank could not write; see whether its disks and --out have room")


def _all_have(is_there: bool) -> bool:
    missing = torch.tensor([0.0 if is_there else 1.0])
    if dist.is_initialized() and dist.get_world_size() > 1:
        missing = missing.to("cuda") if dist.get_backend() == "nccl" else missing
        dist.all_reduce(missing, op=dist.ReduceOp.MAX)
    return not bool(missing.item())


def _write_results(learner: Learner, config: RunConfig, out: Path, version: int, work: UpdateWork) -> None:
    """The averaged policy, as users load it, and pictures of the last rollout."""
    save_policy(
        learner.policy.family,
        learner.averaged,
        out / f"policy-{version:06d}",
        version=version,
        trainable=config.align.trainable,
        base=config.model.path,
    )
    drop_policies(out, config.align.keep_policies)
    with suppress(ray.exceptions.ObjectLostError):  # with its node; it is but a picture
        images = from_8bit(ray.get(work.shares[0][0].images[0]))
        save_rollout_grid(images, config.align.samples_per_prompt, out / "grids" / f"update-{version:06d}.png")


def _report(learner: Learner, metrics: dict[str, Any], update: int, out: Path | None) -> None:
    """Every rank reports every time; a checkpoint, for which `out` must have room, holds each rank's own shard."""
    if out is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        with writing(Path(folder)):
            learner.save(Path(folder), update)
            (Path(folder) / "metrics.json").write_text(json.dumps(metrics))
        with agreed():
            require_room(out, Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        with agreed(), writing(out), explained(out):
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"checkpoint-{update:06d}")
