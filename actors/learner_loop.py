"""The training loop, which every learner rank runs under Ray Train."""

import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ray
import ray.exceptions
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.util.placement_group import PlacementGroup

from actors.coordinator import Collector, Coordinator
from actors.messages import BatchShare, UpdateNotice, UpdateWork
from actors.overlapped_coordinator import OverlappedCoordinator
from actors.pairs_coordinator import PairsCoordinator
from actors.placement import start_dispatcher
from actors.rollout_replay import DumpingCoordinator, ReplayCoordinator
from actors.telemetry.incidents import Incidents
from actors.telemetry.ray_gauges import Telemetry
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.collectives import any_over_ranks, process_ranks
from rlhf.alignment.learner import Learner, needs_base_copy
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.profiling import profiled
from rlhf.alignment.rollout_dump import RolloutDump
from rlhf.alignment.run_folder import is_asked_to_end
from rlhf.alignment.sleeping import Sleeper
from rlhf.alignment.split_network import load_split_policy
from rlhf.alignment.training_checkpoint import saved_ranks
from rlhf.alignment.utilisation import Usage
from rlhf.config.run_config import RunConfig
from rlhf.data.preferred_pairs import PairTable
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_manifest import drop_policies
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.probe import probe_log_prob
from rlhf.errors import UserError
from rlhf.reports.grids import save_rollout_grid
from rlhf.reports.metrics_log import MetricsLog, read_metrics
from rlhf.storage.atomic_files import require_room, writing
from rlhf.storage.images import from_8bit
from rlhf.storage.url_path import explained


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """Everything that the driver passes to the learner ranks; folders are absolute or at URLs."""

    config: RunConfig
    out: Path
    group: PlacementGroup | None
    """Reservation of samplers and scorers; None for a replay."""
    prompts: Path | None
    candidates: Path | None
    """Folder of the pictures that were judged, for `dpo`; neither samplers nor scorers start then."""
    annotations: Path | None
    """Folder of their annotations."""
    reward: Path | None
    start: Path | None
    """Policy folder to start from; None starts from the base model."""
    dump: Path | None
    """Folder that rollouts are written to."""
    replay: Path | None
    """Folder that rollouts are read from; neither samplers nor scorers start then."""
    profile_update: int | None
    """Number of the update, from 1, in which learners and samplers write traces."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    """Identifier of the driver."""
    texts: TextCache | None
    """The captions' embeddings; None for prompts without captions."""


def learner_loop(loop_config: dict[str, RunSetup]) -> str | None:
    """Trains with `loop_config["setup"]`.

    Returns None, or the text of a UserError: after an exception Ray Train would start again.
    """
    try:
        train(loop_config["setup"])
    except UserError as error:
        return str(error)
    return None


def train(setup: RunSetup) -> None:
    """For every update: publishes the weights, rolls out, scores, weighs, trains and saves.

    Rank 0 also coordinates and owns samplers and scorers: it publishes, has them roll out and score, and weighs
    (`Coordinator.collect`), while the other ranks wait for their shares. A checkpoint is complete when all ranks have
    reported it; restarted ranks, whatever their number, go on from the last one. A run that is asked to end saves one.
    """
    config, align, out = setup.config, setup.config.align, setup.out
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.cluster.threads_per_learner)
    incidents = Incidents(out)
    takes_turns = config.cluster.colocate is True
    # Learners open their networks when samplers and scorers sleep.
    with process_ranks().agreed() if takes_turns else nullcontext():
        coordinator = _start_coordinator(setup, ranks, incidents) if rank == 0 else None
    learner, first = _start_learner(setup, ranks)
    sleeper = Sleeper(learner)
    if rank == 0:
        repeated = len(read_metrics(out)) - first
        incidents.note_start(setup.run_id, f"{ranks} rank(s) go on from update {first}; {repeated} are repeated")
    log = MetricsLog(out, first_update=first) if rank == 0 else None
    telemetry = Telemetry(out) if rank == 0 else None
    usage = Usage(learner.policy, config, ranks) if rank == 0 else None
    for update in range(first, align.updates):
        started = time.perf_counter()
        weights, probe = learner.acting_weights(may_round=config.cluster.weights_in == "auto"), None
        if (update - first) % config.cluster.probe_every == 0:
            with learner.acting() as policy:
                probe = probe_log_prob(policy, align)
        # Rank 0 publishes, rolls out, scores and weighs; every rank receives its share.
        collect = None if coordinator is None else partial(coordinator.collect, update, weights, probe)
        with sleeper.asleep() if takes_turns else nullcontext():
            facts, share, batches = receive(rank, collect)
        del weights, collect  # They are published; a copy of a whole network would stay in memory beside the training.
        train_started = time.perf_counter()
        with profiled(out, update + 1, f"learner-{rank}") if update + 1 == setup.profile_update else nullcontext():
            metrics = learner.train(batches, is_on_policy=facts["staleness"] == 0)
        metrics |= facts | {"update": update + 1, "train_s": time.perf_counter() - train_started}
        metrics |= {"update_s": time.perf_counter() - started, "learners": ranks}
        metrics |= usage.of_update(metrics, batches[0].trajectories) if usage is not None else {}
        is_last = update + 1 == align.updates or _shall_end(rank, out)
        is_checkpoint = (update + 1) % align.checkpoint_every == 0 or is_last
        averaged = learner.averaged_weights() if is_checkpoint else {}
        with process_ranks().agreed():
            if log is not None and telemetry is not None:
                log.write(metrics)
                telemetry.publish(metrics)
            if is_checkpoint and rank == 0:
                _save_results(learner.policy, averaged, config, out, update + 1, share[0].images)
        _report(learner, metrics, update + 1, out if is_checkpoint else None)
        if is_last:
            return


def _shall_end(rank: int, out: Path) -> bool:
    """Whether the run was asked to end, as rank 0 sees it; every rank calls it."""
    with process_ranks().agreed():
        is_asked = rank == 0 and is_asked_to_end(out)
    return any_over_ranks(is_asked)


def _start_coordinator(setup: RunSetup, ranks: int, incidents: Incidents) -> Collector:
    if setup.replay is not None:
        return ReplayCoordinator(RolloutDump(setup.replay), incidents, ranks=ranks)
    if setup.candidates is not None:
        assert setup.prompts is not None
        assert setup.annotations is not None
        pairs = PairTable(setup.prompts, setup.candidates, setup.annotations)
        policy = load_policy(setup.config.model, parts={Part.VAE}, texts=setup.texts)
        return PairsCoordinator(setup.config, pairs, policy, incidents, ranks=ranks)
    coordinator = _start_sampling(setup, incidents, ranks)
    return coordinator if setup.dump is None else DumpingCoordinator(coordinator, RolloutDump(setup.dump))


def _start_sampling(setup: RunSetup, incidents: Incidents, ranks: int) -> Collector:
    config, align = setup.config, setup.config.align
    assert setup.prompts is not None, "only a replay needs no prompts"
    keep_images = setup.dump is not None
    dispatcher = start_dispatcher(config, setup.reward, setup.group, incidents, setup.texts, keep_images=keep_images)
    prompts = PromptTable(setup.prompts, split="train")
    coordinator = Coordinator(config, prompts, dispatcher, incidents, ranks=ranks, out=setup.out)
    coordinator.profile_update = setup.profile_update
    if align.max_staleness == 0:
        return coordinator
    return OverlappedCoordinator(coordinator, max_staleness=align.max_staleness, updates=align.updates)


def _start_learner(setup: RunSetup, ranks: int) -> tuple[Learner, int]:
    """Returns the learner and the number of updates that it has made."""
    config, align = setup.config, setup.config.align
    micro_batches = -(-align.prompts_per_update * align.samples_per_prompt // align.micro_batch_size // ranks)
    batches = micro_batches * algorithm_of(align).passes_per_batch(align)
    policy, base, start = open_networks(config, setup.start, setup.texts)
    checkpoint = ray.train.get_checkpoint()

    def make(*, is_resized: bool) -> Learner:
        return Learner(
            policy, align, micro_batches=batches, seed=config.seed, start=start, base=base, is_resized=is_resized
        )

    if checkpoint is None:
        return make(is_resized=False), 0
    with checkpoint.as_directory() as folder:
        learner = make(is_resized=saved_ranks(Path(folder)) != ranks and align.zero_stage > 0)
        return learner, learner.load(Path(folder))


def open_networks(
    config: RunConfig, start: Path | None, texts: TextCache | None = None
) -> tuple[Policy, torch.nn.Module | None, Path | None]:
    """Returns the policy, the base network if the policy's cannot be copied, and the start still to be loaded."""
    model, is_whole = config.model, config.align.trainable == "full"
    if config.align.zero_stage < 3:
        return load_policy(model, parts={Part.NETWORK}, is_trained_whole=is_whole, texts=texts), None, start
    base = load_split_policy(model, texts=texts).network if needs_base_copy(config.align) else None
    if is_whole:
        return load_split_policy(model, is_trained_whole=True, weights=start, texts=texts), base, None
    return load_split_policy(model, texts=texts), base, start


Message = UpdateNotice | UserError | None


def receive(
    rank: int,
    collect: Callable[[], UpdateWork] | None,
    broadcast: Callable[[Message], Message] = broadcast_from_rank_zero,
) -> tuple[dict[str, float], list[BatchShare], list[TrainingBatch]]:
    """Returns the metrics of the work that rank 0 collects, and this rank's share with its training batches.

    Only rank 0 has `collect`. The work is collected again if a node was lost that held some of it. Raises rank 0's
    UserError on all ranks.
    """
    while True:
        message: Message = None
        if collect is not None:
            try:
                message = announce(collect())
            except UserError as error:
                message = error
        notice = broadcast(message)
        if isinstance(notice, UserError):
            raise notice
        assert notice is not None
        fetched = _fetch(notice.shares[rank])
        # Rank 0 keeps `message`, and with it the shares, until all ranks have fetched theirs.
        if not any_over_ranks(fetched is None):
            assert fetched is not None
            return notice.metrics, *fetched


def announce(work: UpdateWork) -> UpdateNotice:
    """Puts each rank's share into the object store; only the references are broadcast."""
    return UpdateNotice(shares=[ray.put(share) for share in work.shares], metrics=work.metrics)


def _fetch(reference: ray.ObjectRef) -> tuple[list[BatchShare], list[TrainingBatch]] | None:
    """Fetches a rank's share and its trajectories; returns None if any is lost."""
    try:
        share: list[BatchShare] = ray.get(reference)
        trajectories = ray.get([batch.trajectories[0] for batch in share])
    except ray.exceptions.ObjectLostError:
        return None
    return share, [
        TrainingBatch(trajectories=t, advantages=b.advantages, trust_weights=b.trust_weights, weight=b.weight)
        for t, b in zip(trajectories, share, strict=True)
    ]


def _save_results(
    policy: Policy,
    averaged: dict[str, torch.Tensor],
    config: RunConfig,
    out: Path,
    version: int,
    images: list[ray.ObjectRef],
) -> None:
    """Saves the averaged policy for users and a picture of the last rollout."""
    save_policy(
        policy.family,
        averaged,
        out / f"policy-{version:06d}",
        version=version,
        trainable=config.align.trainable,
        base=config.model.path,
    )
    drop_policies(out, config.align.keep_policies)
    with suppress(ray.exceptions.ObjectLostError):  # The picture is lost with its node; the run does not need it.
        grid = from_8bit(ray.get(images[0]))
        save_rollout_grid(grid, config.align.samples_per_prompt, out / "grids" / f"update-{version:06d}.png")


def _report(learner: Learner, metrics: dict[str, float], update: int, out: Path | None) -> None:
    """Reports to Ray Train on every rank; with `out`, which must have room, adds a checkpoint of the rank's shard."""
    if out is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        with writing(Path(folder)):
            learner.save(Path(folder), update)
        with process_ranks().agreed():
            require_room(out, Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        with process_ranks().agreed(), writing(out), explained(out):
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"checkpoint-{update:06d}")
