"""Judge models: `rlhf evaluate` and `rlhf quality`."""

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
        typer.Option("--extension", help="Folder of photographs: also extend their centre strips, into OUT/extension."),
    ] = None,
    views: Annotated[
        bool, typer.Option("--views", help="Also compare new views with true ones, into OUT/views.")
    ] = False,
    workers: Workers = None,
    address: SamplersAddress = None,
    wait: Wait = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare models, classical fills and images on held-out prompts; a run is painted here or on Ray."""
    resolved = resolve_config(config, overrides)
    from rlhf.errors import UserError
    from rlhf.evaluation.comparison_run import ContestRequest, hold_contest
    from rlhf.evaluation.comparison_tables import format_contest
    from rlhf.evaluation.contestants import parse_contestants
    from rlhf.evaluation.tasks.extension import ExtensionPlan, choose_photographs, evaluate_extension
    from rlhf.evaluation.tasks.views import evaluate_views
    from rlhf.reports.intervals import show_estimate

    if run is None and (workers is not None or address is not None):
        raise UserError("evaluate: --workers and --address paint the models of --run; contestants are painted here")
    if views and run is None:
        raise UserError("evaluate: --views compares the base and the aligned model of --run RUN")
    plan = None if extension is None else ExtensionPlan(images=extension, bootstrap=resolved.evaluate.bootstrap)
    if plan is not None:
        choose_photographs(plan)  # fails early
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
    if plan is not None:
        print(evaluate_extension(plan, resolved, run, out / "extension"))
    if views and run is not None:
        print(evaluate_views(resolved, run, out / "views"))


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
