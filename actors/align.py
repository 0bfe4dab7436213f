"""The driver of `rlhf align`: starts Ray, reserves the actors' places and has Ray Train run the learner."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import ray.train
import torch
from ray.train.torch import TorchTrainer

from actors.colocation import gpus_of_cluster, share_gpus, without_turns
from actors.learner_loop import RunSetup, learner_loop
from actors.placement import cpus_of, reserve
from actors.resources import ROLES, resources_of
from actors.session.process_group import process_group_config
from actors.session.ray_session import check_address, ray_session
from actors.session.signals import ending_on_signal
from actors.session.trainers import fit, storage_of
from actors.session.watch import describe_way_on
from actors.telemetry.incidents import read_incidents
from actors.telemetry.run_progress import find_role_to_grow, follow_metrics, track_metrics
from actors.text_preparation import prepare_texts
from rlhf.alignment.disk_need import describe_disk_need
from rlhf.alignment.planning.verdict import check_room
from rlhf.alignment.rollout_dump import RolloutDump
from rlhf.alignment.run_folder import LEARNER_FOLDER, is_begun
from rlhf.alignment.trained_steps import check_trained_steps
from rlhf.alignment.training_checkpoint import check_list
from rlhf.config.config_files import dump_config, load_config
from rlhf.config.run_config import RunConfig
from rlhf.data.preferred_pairs import PairTable
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.open_family import check_guided_captions, check_sizes
from rlhf.diffusion.policy_weights import check_start
from rlhf.errors import RunInterruptedError, UserError
from rlhf.reports.metrics_log import read_metrics
from rlhf.reports.trackers import check_packages
from rlhf.rewards.open_reward import build_rewards, check_captions, with_absolute_paths
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text, read_json


def align(
    config: RunConfig,
    prompts: Path | None,
    reward: Path | None,
    out: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    address: str | None = None,
    wait: bool = False,
    dump: Path | None = None,
    replay: Path | None = None,
    candidates: Path | None = None,
    annotations: Path | None = None,
    profile_update: int | None = None,
) -> Path:
    """Aligns the model to the reward; returns the last policy folder.

    `reward` is the reward folder; None if `config.rewards` names everything needed. Training begins with the policy
    folder `start`, or else with the base model. With `wait` it waits for missing resources. Rollouts are written to
    the folder `dump`, if any; with `replay` they are read from that folder, without samplers, scorers, prompts and
    reward. `dpo` trains on the pairs of `candidates` that `annotations` order, likewise. In the update
    `profile_update`, counted from 1, learners and samplers write traces. All results are below `out`. Raises UserError
    for bad input before a process starts, and for a run that cannot go on, and RunInterruptedError for one that
    SIGTERM or SIGUSR1 ended: it has saved a checkpoint after the update in work.
    """
    read = {"prompts": prompts, "reward": reward, "start": start, "candidates": candidates, "annotations": annotations}
    folders = RunFolders(**read, dump=dump, replay=replay)
    check_address(address)
    config = _prepare(config, out, folders, resume=resume, is_here=address is None, profile_update=profile_update)
    with ray_session(address, num_cpus=cpus_of(config.cluster)):
        _run(config, out, folders, wait=wait, profile_update=profile_update)
    if (hint := find_role_to_grow(read_metrics(out))) is not None:
        print(f"align: {hint}", file=sys.stderr)
    return out / f"policy-{config.align.updates:06d}"


def _run(config: RunConfig, out: Path, folders: "RunFolders", *, wait: bool, profile_update: int | None) -> None:
    config = share_gpus(config, gpus_of_cluster()) if folders.are_sampled else without_turns(config)
    group = reserve(config.cluster, ROLES if folders.are_sampled else ("learner",), wait=wait)
    prompts = None if folders.prompts is None else PromptTable(folders.prompts, split="train")
    setup = RunSetup(
        **vars(folders.absolute()),
        config=config,
        out=out.resolve(),
        group=group,
        texts=None if prompts is None else prepare_texts(config, prompts, out, group),
        profile_update=profile_update,
    )
    with ending_on_signal(out), follow_metrics(out, config.align), track_metrics(out, config):
        _fit(make_trainer(setup, out), out, config.align.updates)


@dataclass(frozen=True, kw_only=True)
class RunFolders:
    """The folders that a run reads, and the one that it dumps rollouts into; see `align`."""

    prompts: Path | None
    reward: Path | None
    start: Path | None
    dump: Path | None
    replay: Path | None
    candidates: Path | None
    annotations: Path | None

    @property
    def are_sampled(self) -> bool:
        """Whether samplers make the pictures of the run, not a replay or annotators' candidates."""
        return self.replay is None and self.candidates is None

    def absolute(self) -> Self:
        """The same folders for processes with other working directories."""
        return replace(self, **{name: folder and folder.resolve() for name, folder in vars(self).items()})


def _prepare(
    config: RunConfig, out: Path, folders: RunFolders, *, resume: bool, is_here: bool, profile_update: int | None
) -> RunConfig:
    """Checks all input and prepares the run folder; returns the configuration for the actors."""
    if folders.start is not None:
        check_start(folders.start, config.align.trainable, config.model.path)
    if profile_update is not None and profile_update > config.align.updates:
        raise UserError(f"--profile-update: the run has {config.align.updates} updates; name one of them")
    check_packages(config.logging)
    check_trained_steps(config)
    prepare_run_folder(out, config, resume=resume, start=folders.start)
    if folders.dump is not None:
        RolloutDump(folders.dump).begin(config, resume=resume)
    if folders.replay is not None:
        RolloutDump(folders.replay).check_whole(config)
    elif config.align.algorithm == "dpo":
        _check_pairs(config, folders.prompts, folders.candidates, folders.annotations)
    else:
        config = check_inputs(config, folders.prompts, folders.reward)
    read = None if folders.replay is not None else folders.prompts
    sizes = [] if read is None else PromptTable(read, split="train").sizes.values()
    size = max(sizes, key=math.prod, default=None)
    print(f"align: {check_room(config, size, is_here=is_here, is_sampling=folders.are_sampled)}", file=sys.stderr)
    print(describe_disk_need(config, out), file=sys.stderr)
    return config


def _check_pairs(config: RunConfig, prompts: Path | None, candidates: Path | None, annotations: Path | None) -> None:
    """Raises UserError if a folder is not named, if a pair lacks a picture, or if there are too few pairs."""
    if prompts is None or candidates is None or annotations is None:
        raise UserError("align: dpo trains on annotated pairs; name --prompts, --candidates and --annotations")
    pairs, wanted = PairTable(prompts, candidates, annotations), config.align.prompts_per_update
    if len(pairs.names) < wanted:
        raise UserError(f"{annotations}: {len(pairs.names)} pairs, but align.prompts_per_update is {wanted}; lower it")
    check_sizes(config.model, PromptTable(prompts, split="train").sizes)


def check_inputs(config: RunConfig, prompts: Path | None, reward: Path | None) -> RunConfig:
    """Runs `check_rewards` with the prompts' captions; raises UserError also if there are too few prompts, or none."""
    if prompts is None:
        raise UserError("align: name the folder of prompts with --prompts; only --replay needs none")
    table, wanted = PromptTable(prompts, split="train"), config.align.prompts_per_update
    if len(table.ids) < wanted:
        raise UserError(f"{prompts}: {len(table.ids)} training prompts, but align.prompts_per_update is {wanted}")
    check_guided_captions(config.model, table.captions)
    check_sizes(config.model, table.sizes)
    return check_rewards(config, reward, table.captions)


def check_rewards(config: RunConfig, reward: Path | None, captions: Mapping[str, str]) -> RunConfig:
    """Returns the configuration with absolute paths of the rewards' folders, since actors start elsewhere.

    Raises UserError if a reward does not load, cannot give the trust weights of `align.trust`, or reads a caption that
    a prompt does not have.
    """
    config = config.model_copy(update={"rewards": with_absolute_paths(config.rewards)})
    check_captions(config.rewards, captions)
    # Only tests that they load: the scorers hold them, and this machine may have no GPU.
    build_rewards(config.rewards, reward, torch.device("cpu"), trust=config.align.trust)
    return config


def prepare_run_folder(out: Path, config: RunConfig, *, resume: bool, start: Path | None = None) -> None:
    """Saves the resolved configuration and the policy to start from.

    Raises UserError for a used folder without `--resume`, and for another configuration or start, or a damaged file,
    with it.
    """
    saved, begun = out / "config.yaml", out / "start.json"
    begins = {"policy": None if start is None else str(start.resolve())}
    if is_begun(out):
        if not resume:
            raise UserError(f"{out}: holds a run already; add --resume to go on with it, or choose another --out")
        for read in (read_metrics, read_incidents):  # Damage ends the run here, before processes start.
            read(out)
        before = load_config(saved)
        kept = {name: getattr(config.align, name) for name in ("keep_last", "keep_policies")}
        may_change = {"cluster": config.cluster, "logging": config.logging}
        if before.model_copy(update=may_change | {"align": before.align.model_copy(update=kept)}) != config:
            raise UserError(f"{out}: was started with another configuration ({saved}); resume with the same one")
        if begun.is_file() and read_json(begun, "choose another --out") != begins:
            raise UserError(f"{out}: was started from another policy ({begun}); resume with the same --policy")
        check_list(out)
    atomic_write_text(saved, dump_config(config))
    atomic_write_json(begun, begins)


def make_trainer(setup: RunSetup, out: Path) -> TorchTrainer:
    """Wraps Ray Train around the learner loop; a run of the same folder goes on from its last checkpoint."""
    cluster = setup.config.cluster
    asked = resources_of(cluster, "learner")
    learners = cluster.learners if cluster.min_learners is None else (cluster.min_learners, cluster.learners)
    return TorchTrainer(
        learner_loop,
        train_loop_config={"setup": setup},
        torch_config=process_group_config("nccl" if "GPU" in asked else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=learners,
            use_gpu="GPU" in asked,
            resources_per_worker=asked,
            placement_strategy=cluster.placement,
        ),
        run_config=ray.train.RunConfig(
            name=LEARNER_FOLDER,
            **storage_of(out),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=setup.config.align.keep_last),
            failure_config=ray.train.FailureConfig(max_failures=cluster.learner_failures),
        ),
    )


def _fit(trainer: TorchTrainer, out: Path, updates: int) -> None:
    fit(trainer)
    lines = read_metrics(out)
    if not lines:
        raise UserError(f"{out}: the run wrote no metrics")
    if lines[-1]["update"] < updates:
        done = f"{lines[-1]['update']:.0f} of {updates} updates are saved in {out}"
        raise RunInterruptedError(f"{done}. {describe_way_on(sys.argv)}")
