"""The command `rlhf`. Heavy imports stay inside the functions, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf.errors import UserError

app = typer.Typer(
    name="rlhf",
    help="Align inpainting diffusion models with people's preferences, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "DEEPSPEED_LOG_LEVEL": "error"}
"""Libraries whose notes say nothing to a user of this command."""

Config = Annotated[Path | None, typer.Option("--config", help="YAML file with what differs from the defaults.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override, as section.key=value; repeatable.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
PromptsFolder = Annotated[Path, typer.Option("--prompts", help="Folder of prompts.")]
CandidatesFolder = Annotated[Path, typer.Option("--candidates", help="Folder of candidates.")]
RewardFolder = Annotated[Path, typer.Option("--reward", help="Reward folder.")]


def main() -> None:
    """Run a command; an error that the user can mend ends with exit code 2 and no traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is on disk", file=sys.stderr)
        sys.exit(130)


def _config(file: Path | None, overrides: list[str] | None):  # noqa: ANN202
    from rlhf.config_files import load_config

    return load_config(file, tuple(overrides or ()))


def _save_config(config, out: Path) -> None:  # noqa: ANN001
    from rlhf.config_files import dump_config
    from rlhf.storage import atomic_write_text

    atomic_write_text(out / "config.yaml", dump_config(config))


@app.command()
def prompts(
    images: Annotated[Path, typer.Option("--images", help="Folder of photographs of any size.")],
    out: Out,
    split: Annotated[str | None, typer.Option(help="Split of all prompts; default: prompts.test_share.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Cut square crops with holes from photographs."""
    resolved = _config(config, overrides)
    from rlhf.prompts import make_prompts

    _save_config(resolved, out)
    count = make_prompts(images, out, resolved.prompts, seed=resolved.seed, split=split)
    print(f"{count} prompts in {out}")


@app.command()
def candidates(
    prompts: PromptsFolder,
    out: Out,
    policy: Annotated[Path | None, typer.Option(help="Policy folder; default: the base model.")] = None,
    split: Annotated[str, typer.Option(help="Which prompts.")] = "train",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Sample inpaintings for annotation."""
    resolved = _config(config, overrides)
    from rlhf.candidates import make_candidates
    from rlhf.policy import load_policy
    from rlhf.prompts import load_prompts

    _save_config(resolved, out)
    loaded = load_prompts(prompts, split=split)
    model = load_policy(resolved.model, policy)
    count = make_candidates(model, loaded, out, resolved.candidates, seed=resolved.seed)
    print(f"{count} candidates in {out}")


@app.command()
def annotate(
    prompts: PromptsFolder,
    candidates: CandidatesFolder,
    out: Out,
    simulated: Annotated[bool, typer.Option("--simulated", help="Let simulated annotators score.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Score candidates 0-7 on structure, texture and overall."""
    if not simulated:
        raise UserError("annotate: this version has no annotation page yet; add --simulated")
    resolved = _config(config, overrides)
    from rlhf.annotators import simulate_annotations
    from rlhf.candidates import load_candidates
    from rlhf.prompts import load_prompts

    _save_config(resolved, out)
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images = load_candidates(candidates, by_id)
    count = simulate_annotations(by_id, images, out, resolved.annotators, seed=resolved.seed)
    print(f"{count} simulated annotations in {out}")


@app.command()
def reward(
    prompts: PromptsFolder,
    candidates: CandidatesFolder,
    annotations: Annotated[Path, typer.Option("--annotations", help="Folder of annotations.")],
    out: Out,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Train the reward model, fit its ridge head and V, calibrate its bound."""
    resolved = _config(config, overrides)
    from rlhf.annotators import load_annotations
    from rlhf.candidates import load_candidates
    from rlhf.prompts import load_prompts
    from rlhf.reward_training import train_reward

    _save_config(resolved, out)
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    rows = load_annotations(annotations)
    figures = train_reward(by_id, load_candidates(candidates, by_id), rows, out, resolved.reward, seed=resolved.seed)
    measured = figures["coverage_measured"]
    print(
        f"reward in {out}: coverage {measured['value']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}] "
        f"(stated {figures['coverage_stated']}), effective rank {figures['effective_rank']:.1f}, "
        f"rank correlation with scores {figures['rank_correlation_reward_score']['value']:.2f}"
    )


@app.command()
def align(
    prompts: PromptsFolder,
    reward: RewardFolder,
    out: Out,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: this machine alone.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Move the policy towards higher reward by reinforcement learning, on Ray actors."""
    resolved = _config(config, overrides)
    from actors.align import align as run

    last = run(resolved, prompts, reward, out, resume=resume, address=address)
    print(f"aligned policy in {last}")


@app.command()
def evaluate(
    prompts: PromptsFolder,
    reward: RewardFolder,
    run: Annotated[Path, typer.Option("--run", help="Folder that `rlhf align` wrote.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Which prompts.")] = "test",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare the aligned with the base model on held-out prompts."""
    resolved = _config(config, overrides)
    from rlhf.evaluation import evaluate as compare
    from rlhf.policy import list_policies
    from rlhf.prompts import load_prompts
    from rlhf.reward_model import load_reward

    _save_config(resolved, out)
    summary = compare(
        resolved.model,
        list_policies(run),
        load_prompts(prompts, split=split),
        load_reward(reward),
        out,
        resolved.evaluate,
        seed=resolved.seed,
    )
    rate = summary["win_rate"]
    print(f"WinRate (gold judge, simulated) {rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}] in {out}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a whole run, such as runs/demo.")]) -> None:
    """Write the run's self-contained HTML report again."""
    from rlhf.report import write_report

    print(f"report in {write_report(run)}")


@app.command()
def export(
    policy: Annotated[Path, typer.Argument(help="Policy folder.")],
    out: Out,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Merge a policy into its base model: a complete pipeline folder for diffusers."""
    resolved = _config(config, overrides)
    from rlhf.policy import export_policy

    print(f"pipeline in {export_policy(resolved.model, policy, out)}")


@app.command()
def pretrain(
    images: Annotated[Path, typer.Option("--images", help="Folder of photographs.")],
    out: Out,
    vae_updates: Annotated[int, typer.Option(help="Optimizer steps of the VAE.")] = 3000,
    unet_updates: Annotated[int, typer.Option(help="Optimizer steps of the UNet.")] = 6000,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops, holes and noise.")] = 0,
) -> None:
    """Train the built-in model `tiny` from photographs; goes on where it was interrupted."""
    from rlhf.pretrain import PretrainConfig
    from rlhf.pretrain import pretrain as train

    settings = PretrainConfig(images=images, out=out, vae_updates=vae_updates, unet_updates=unet_updates, seed=seed)
    print(f"pipeline in {train(settings)}")


@app.command()
def quality(
    prompts: PromptsFolder,
    policy: Annotated[Path | None, typer.Option(help="Policy folder; default: the base model.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Measure a model against the originals: VAE PSNR, hole PSNR and SSIM."""
    resolved = _config(config, overrides)
    from rlhf.model_quality import measure_quality
    from rlhf.policy import load_policy
    from rlhf.prompts import load_prompts

    steps = resolved.evaluate.num_inference_steps
    model = load_policy(resolved.model, policy)
    figures = measure_quality(model, load_prompts(prompts), num_inference_steps=steps, seed=resolved.seed)
    for name, figure in figures.items():
        interval = f"[{figure['low']:.3f}, {figure['high']:.3f}]"
        print(f"{name}: {figure['value']:.3f} {interval} ({figure['clusters']} photographs)")


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Argument(help="Run folder, policy folder, or pipeline folder; default: tiny.")
    ] = None,
    reward: Annotated[Path | None, typer.Option("--reward", help="Reward folder, for bounds in the answers.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.")] = 8000,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Serve a model over HTTP with Ray Serve: POST /v1/images/edits."""
    resolved = _config(config, overrides)
    from rlhf.policy import locate_policy
    from serve.application import run

    model_config, adapter = locate_policy(resolved.model, model)
    run(model_config, adapter, reward, host, port)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    images: Annotated[
        Path | None, typer.Option("--images", help="Training photographs; default: scikit-image's.")
    ] = None,
    eval_images: Annotated[Path | None, typer.Option("--eval-images", help="Held-out photographs.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Everything, from photographs to an aligned model and a report; goes on where it was interrupted."""
    from rlhf.demo import run_demo

    run_demo(out, images, eval_images, config, tuple(overrides or ()))
