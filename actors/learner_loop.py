"""What every learner rank runs under Ray Train: the whole of the training, in one function."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from actors.coordinator import Coordinator
from actors.messages import BatchShare, UpdateWork
from rlhf.config import RunConfig
from rlhf.grids import save_rollout_grid
from rlhf.learner import Learner, TrainingBatch
from rlhf.metrics_log import MetricsLog
from rlhf.policy import drop_policies, load_policy, save_policy
from rlhf.storage import require_room, writing
from rlhf.url_path import explained


def learner_loop(setup: dict[str, Any]) -> None:
    """Rollout, score, train, publish; again for every update.

    `setup` holds `config`, the actor handles `samplers` and `scorers`, `prompt_ids`, the folder `out`, and the
    policy folder to `start` from or None; either may be at a URL.
    Rank 0 also coordinates; it waits for samplers and scorers, the other ranks wait for it. A
    checkpoint is complete only when all ranks have reported it; a restarted worker goes on from the
    last one.
    """
    config: RunConfig = setup["config"]
    align, out = config.align, setup["out"]
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.cluster.threads_per_learner)
    learner = _start_learner(config, ranks, setup["start"])
    coordinator = Coordinator(config, setup["prompt_ids"], setup["samplers"], setup["scorers"], ranks, out)
    first = _resume(learner)
    log = MetricsLog(out, first_update=first) if rank == 0 else None

    for update in range(first, align.updates):
        started = time.perf_counter()
        weights = learner.weights()
        work = coordinator.collect(update, weights) if rank == 0 else None
        work = broadcast_from_rank_zero(work)
        train_started = time.perf_counter()
        metrics = learner.train([_fetch(share) for share in work.shares[rank]])
        metrics |= work.metrics | {"update": update + 1, "train_s": time.perf_counter() - train_started}
        metrics["update_s"] = time.perf_counter() - started
        if log is not None:
            log.write(metrics)

        is_checkpoint = (update + 1) % align.checkpoint_every == 0 or update + 1 == align.updates
        if is_checkpoint and rank == 0:
            _write_results(learner, config, out, update + 1, work)
        _report(learner, metrics, update + 1, out if is_checkpoint else None)


def _start_learner(config: RunConfig, ranks: int, start: Path | None) -> Learner:
    align = config.align
    micro_batches = align.prompts_per_update * align.samples_per_prompt // align.micro_batch_size // ranks
    steps = align.window_size if align.algorithm == "grpo" else align.trained_steps
    policy = load_policy(config.model)
    return Learner(policy, align, micro_batches=micro_batches * steps, seed=config.seed, start=start)


def _resume(learner: Learner) -> int:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return learner.load(Path(folder))


def _fetch(share: BatchShare) -> TrainingBatch:
    return TrainingBatch(
        trajectories=ray.get(share.trajectories[0]), advantages=share.advantages, trust_weights=share.trust_weights
    )


def _write_results(learner: Learner, config: RunConfig, out: Path, version: int, work: UpdateWork) -> None:
    """The averaged policy, as users load it, and pictures of the last rollout."""
    save_policy(
        learner.policy,
        learner.averaged,
        out / f"policy-{version:06d}",
        version=version,
        trainable=config.align.trainable,
        base=config.model.path,
    )
    drop_policies(out, config.align.keep_policies)
    images = ray.get(work.shares[0][0].trajectories[0]).images
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
        require_room(out, Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        with writing(out), explained(out):
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"checkpoint-{update:06d}")
