"""Commands that train: `reward`, `align`, and `pretrain` for the built-in model."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf.commands.options import (
    Address,
    Config,
    Out,
    Overrides,
    Wait,
    holds_out,
    resolve_config,
    save_config,
)
from rlhf.errors import UserError
from rlhf.imports import without_collections

if TYPE_CHECKING:
    from rlhf.config.run_config import RunConfig
    from rlhf.rewards.learned.reward_report import RewardReport, UpdatedReport
    from rlhf.workflows.reward_run import RewardRun, Tables

Objective = Annotated[
    str | None, typer.Option(help="`scores` (regression) or `pairs` (Bradley-Terry); default: reward.objective.")
]
UpdatedReward = Annotated[
    Path | None, typer.Option("--update", help="Reward folder to add these annotations to; its features stay.")
]
RewardWorkers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on Ray that share the pictures; default: this process alone."),
]

JudgedCandidates = Annotated[
    Path | None, typer.Option("--candidates", help="dpo: folder of the pictures that were judged.")
]
Annotations = Annotated[Path | None, typer.Option("--annotations", help="dpo: folder of their annotations.")]
Dump = Annotated[Path | None, typer.Option("--dump-rollouts", help="Folder to write every rollout to.")]
Replay = Annotated[
    Path | None, typer.Option("--replay", help="Folder of dumped rollouts to train on, without sampling.")
]
RolloutsOnly = Annotated[
    bool, typer.Option("--rollouts-only", help="Roll out and score into --dump-rollouts; do not train.")
]
ProfileUpdate = Annotated[
    int | None,
    typer.Option("--profile-update", min=1, help="Update in which learners and samplers write traces to OUT/profile."),
]
StartPolicy = Annotated[
    Path | None, typer.Option("--policy", help="Policy folder to start from; the KL is still to the base model.")
]
DPO_ALONE = "align: dpo makes no rollouts; leave --reward, --dump-rollouts, --replay and --rollouts-only out"


@holds_out
def reward(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    objective: Objective = None,
    update: UpdatedReward = None,
    workers: RewardWorkers = None,
    address: Address = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train the reward model, fit its head and V, calibrate its bound, report; resumes after an interruption."""
    if update is not None and (objective or config or overrides):
        raise UserError("reward: --update keeps the settings of its reward; leave --objective, --config and --set out")
    if update is not None and workers is not None:
        raise UserError("reward: --update describes the new pictures in this process; leave --workers out")
    chosen = [f"reward.objective={objective}"] if objective else []
    resolved = resolve_config(config, [*(overrides or []), *chosen])
    from rlhf.workflows.reward_run import RewardRun

    run = RewardRun(
        prompts=prompts.resolve(),
        candidates=candidates.resolve(),
        annotations=annotations.resolve(),
        out=out.resolve(),
        config=resolved.reward,
        seed=resolved.seed,
        command=shlex.join(["rlhf", *sys.argv[1:]]),
    )
    tables = run.open_tables()
    _count_unknown(tables)
    if update is not None:
        from rlhf.rewards.learned.reward_update import update_reward

        _print_figures(update_reward(update, *tables, out), out / "report.json")
    else:
        save_config(resolved, out)
        _print_figures(_train_reward(run, tables, workers, address), out / "report.html")


def _count_unknown(tables: "Tables") -> None:
    from rlhf.data.annotated_images import count_unknown

    _, candidates, annotations = tables
    unknown = count_unknown(candidates, annotations)
    if 0 < unknown < len(annotations):
        share = f"{unknown} of {len(annotations)}"
        print(f"reward: {share} annotations are of unknown candidates; left out", file=sys.stderr)


def _train_reward(run: "RewardRun", tables: "Tables", workers: int | None, address: str | None) -> "RewardReport":
    """Trains in this process, or on workers; prints doubts."""
    from rlhf.rewards.learned.reward_training import describe_doubts
    from rlhf.workflows.reward_run import run_reward

    if workers is None and address is None:
        report = run_reward(run, tables)
    else:
        from actors.reward_workers import train_on_workers

        report = train_on_workers(run, workers or 1, address)
    for doubt in describe_doubts(report):
        print(f"reward: {doubt}", file=sys.stderr)
    return report


def _print_figures(report: "RewardReport | UpdatedReport", file: Path) -> None:
    from rlhf.reports.intervals import show_estimate
    from rlhf.reports.pages import show

    print(
        f"reward in {file.parent}: coverage {show_estimate(report.coverage_measured, '.3f')} "
        f"(stated {report.coverage_stated}), effective rank {report.effective_rank:.1f}, "
        f"rank correlation with scores {show(report.rank_correlation_reward_score.value, '.2f')}; figures in {file}"
    )


@holds_out
def align(
    out: Out,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Folder of prompts.")] = None,
    reward: Annotated[
        Path | None, typer.Option("--reward", help="Reward folder; not needed if `rewards:` names all.")
    ] = None,
    policy: StartPolicy = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    address: Address = None,
    wait: Wait = False,
    dump: Dump = None,
    replay: Replay = None,
    candidates: JudgedCandidates = None,
    annotations: Annotations = None,
    rollouts_only: RolloutsOnly = False,
    profile_update: ProfileUpdate = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Move the policy towards higher reward by reinforcement learning, on Ray actors."""
    if replay is not None and (dump is not None or rollouts_only):
        raise UserError("align: --replay makes no rollouts; leave --dump-rollouts and --rollouts-only out")
    resolved = resolve_config(config, overrides)
    _check_pairs_alone(
        resolved.align.algorithm,
        needs_rollouts=rollouts_only or any(given is not None for given in (reward, dump, replay)),
        has_pairs=candidates is not None or annotations is not None,
    )
    options: dict[str, Any] = {"start": policy, "resume": resume, "address": address, "wait": wait}
    if not rollouts_only:
        with without_collections():
            from actors.align import align as run

        options |= {"dump": dump, "replay": replay, "profile_update": profile_update}
        options |= {"candidates": candidates, "annotations": annotations}
        print(f"aligned policy in {run(resolved, prompts, reward, out, **options)}")
        return
    if profile_update is not None:
        raise UserError("align: --profile-update is for training; leave it or --rollouts-only out")
    _roll_out_alone(resolved, prompts, reward, out, dump, options)


def _roll_out_alone(
    config: "RunConfig",
    prompts: Path | None,
    reward: Path | None,
    out: Path,
    dump: Path | None,
    options: dict[str, Any],
) -> None:
    if dump is None or prompts is None:
        raise UserError("align: --rollouts-only needs --prompts, and --dump-rollouts to write to")
    from actors.rollouts_only import roll_out

    print(f"rollouts of {roll_out(config, prompts, reward, out, dump, **options)} updates in {dump}")


def _check_pairs_alone(algorithm: str, *, needs_rollouts: bool, has_pairs: bool) -> None:
    if algorithm == "dpo" and needs_rollouts:
        raise UserError(DPO_ALONE)
    if algorithm != "dpo" and has_pairs:
        raise UserError("align: only dpo trains on --candidates and --annotations; set align.algorithm=dpo")


@holds_out
def pretrain(
    images: Annotated[list[Path], typer.Option("--images", help="Folder of photographs; may be given several times.")],
    out: Out,
    vae_updates: Annotated[int, typer.Option(help="Optimizer steps of the VAE's decoder.")] = 2000,
    updates: Annotated[int, typer.Option(help="Optimizer steps of the denoising network.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops, holes and noise.")] = 0,
) -> None:
    """Train the built-in model `tiny` anew from photographs, for hours; resumes after an interruption."""
    from rlhf.diffusion.builtin.pretrain import PretrainConfig
    from rlhf.diffusion.builtin.pretrain import pretrain as train
    from rlhf.storage.url_path import UrlPath

    for path in (*images, out):
        if isinstance(path, UrlPath):
            raise UserError(f"pretrain: {path}: give local folders; the pipeline can be copied to a URL then")
    settings = PretrainConfig(images=tuple(images), out=out, vae_updates=vae_updates, updates=updates, seed=seed)
    print(f"pipeline in {train(settings)}")
