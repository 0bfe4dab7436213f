"""What is done with a policy: compare, report, export, serve; and everything in a row."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import (
    Config,
    Out,
    Overrides,
    PromptsFolder,
    RewardFolder,
    SamplersAddress,
    Wait,
    Workers,
    open_samplers,
    resolve_config,
    save_config,
)


def evaluate(
    prompts: PromptsFolder,
    reward: RewardFolder,
    out: Out,
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder that `rlhf align` wrote: base and aligned model take part.")
    ] = None,
    contestant: Annotated[
        list[str] | None,
        typer.Option(
            "--contestant",
            help="NAME=SPEC, repeatable: a run, policy or pipeline folder, a hub name, telea, navier-stokes, "
            "biharmonic, or images:FOLDER of PROMPT_ID.png or PROMPT_ID_0.png.",
        ),
    ] = None,
    base: Annotated[str, typer.Option("--base", help="Contestant that the others are compared with.")] = "base",
    split: Annotated[str, typer.Option(help="Which prompts.")] = "test",
    extension: Annotated[
        Path | None,
        typer.Option("--extension", help="Folder of photographs: also `rlhf study extension`, into OUT/extension."),
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="Also `rlhf study views`, into OUT/views.")] = False,
    workers: Workers = None,
    address: SamplersAddress = None,
    wait: Wait = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare models, classical fills and images on held-out prompts; a run is painted here or on Ray."""
    resolved = resolve_config(config, overrides)
    from benchmarks.studies import commands as studies
    from rlhf.errors import UserError
    from rlhf.evaluation.comparison_run import ContestRequest, hold_contest
    from rlhf.evaluation.comparison_tables import format_contest
    from rlhf.evaluation.contestants import parse_contestants
    from rlhf.evaluation.tasks.extension_study import ExtensionPlan, choose_photographs
    from rlhf.reports.intervals import show_estimate

    if run is None and (workers is not None or address is not None):
        raise UserError("evaluate: --workers and --address paint the models of --run; contestants are painted here")
    if views and run is None:
        raise UserError("evaluate: --views compares the base and the aligned model of --run RUN")
    if extension is not None:
        choose_photographs(ExtensionPlan(images=extension, bootstrap=resolved.evaluate.bootstrap))  # fails early
    request = ContestRequest(
        prompts=prompts,
        split=split,
        reward=reward,
        run=run,
        specs=parse_contestants(contestant or []),
        base=base,
        out=out,
    )
    save_config(resolved, out)
    found = hold_contest(
        request,
        resolved,
        lambda table, policies: open_samplers(resolved, table.rows, policies, out, workers, address, wait),
    )
    print(format_contest(found["contest"]))
    if found["evaluation"] is not None:
        rate = show_estimate(found["evaluation"]["win_rate"], ".1%")
        print(f"WinRate (gold judge, simulated) {rate} in {out}")
    for alarm in found["contest"]["alarms"]:
        print(f"ALARM, {alarm['kind']}: {alarm['message']}")
    print(f"page: {out / 'contest.html'}")
    if extension is not None:
        studies.extension(images=extension, out=out / "extension", run=run, config=config, overrides=overrides)
    if views and run is not None:
        studies.views(run=run, out=out / "views", config=config, overrides=overrides)


def quality(
    prompts: PromptsFolder,
    policy: Annotated[Path | None, typer.Option(help="Policy folder; default: the base model.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Measure a model against the originals: VAE PSNR, hole PSNR and SSIM."""
    resolved = resolve_config(config, overrides)
    from rlhf.data.prompts import load_prompts
    from rlhf.diffusion.builtin.model_quality import measure_quality
    from rlhf.diffusion.policy import load_policy
    from rlhf.reports.intervals import show_estimate

    steps = resolved.evaluate.num_inference_steps
    model = load_policy(resolved.model, policy)
    figures = measure_quality(model, load_prompts(prompts), num_inference_steps=steps, seed=resolved.seed)
    for name, figure in figures.items():
        print(f"{name}: {show_estimate(figure, '.3f')} ({figure['clusters']} photographs)")


def report(run: Annotated[Path, typer.Argument(help="Folder of a whole run, such as runs/demo.")]) -> None:
    """Write the run's self-contained HTML report again."""
    from rlhf.workflows.run_report import write_report

    print(f"report in {write_report(run)}")


def export(
    policy: Annotated[Path, typer.Argument(help="Policy folder.")],
    out: Out,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Merge a policy into its base model: a complete pipeline folder for diffusers."""
    resolved = resolve_config(config, overrides)
    from rlhf.diffusion.policy import export_policy

    print(f"pipeline in {export_policy(resolved.model, policy, out)}")


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
    from rlhf.workflows.demo import run_demo

    run_demo(out, images, eval_images, config, tuple(overrides or ()))
