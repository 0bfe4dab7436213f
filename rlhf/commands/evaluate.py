"""Commands that judge models: `rlhf evaluate` and `rlhf quality`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.commands import options

if TYPE_CHECKING:
    from rlhf.evaluation.comparison_run import ComparisonResult


Contestants = Annotated[
    list[str] | None,
    typer.Option(
        "--contestant",
        help="NAME=SPEC, repeatable: a run, policy or pipeline folder, a hub name, telea, navier-stokes, "
        "biharmonic, or images:FOLDER of PROMPT_ID.png or PROMPT_ID_0.png.",
    ),
]
AlignedRun = Annotated[
    Path | None, typer.Option("--run", help="Folder that `rlhf align` wrote: base and aligned model take part.")
]
Extension = Annotated[
    Path | None,
    typer.Option("--extension", help="Folder of photographs: also extend their centre strips, into OUT/extension."),
]
Views = Annotated[bool, typer.Option("--views", help="Also compare new views with true ones, into OUT/views.")]


@options.holds_out
def evaluate(
    prompts: options.PromptsFolder,
    reward: options.RewardFolder,
    out: options.Out,
    run: AlignedRun = None,
    contestant: Contestants = None,
    base: Annotated[str, typer.Option("--base", help="Contestant that the others are compared with.")] = "base",
    split: options.Split = "test",
    extension: Extension = None,
    views: Views = False,
    workers: options.Workers = None,
    address: options.SamplersAddress = None,
    wait: options.Wait = False,
    config: options.Config = None,
    overrides: options.Overrides = None,
) -> None:
    """Compare models, classical fills and images on held-out prompts; a run is painted here or on Ray."""
    resolved = options.resolve_config(config, overrides)
    from rlhf.errors import UserError
    from rlhf.evaluation.comparison_run import ComparisonRequest, run_comparison
    from rlhf.evaluation.contestants import parse_contestants
    from rlhf.evaluation.tasks.extension import ExtensionPlan, choose_photographs, evaluate_extension
    from rlhf.evaluation.tasks.views import evaluate_views

    if run is None and (workers is not None or address is not None):
        raise UserError("evaluate: --workers and --address paint the models of --run; contestants are painted here")
    if views and run is None:
        raise UserError("evaluate: --views compares the base and the aligned model of --run RUN")
    plan = None if extension is None else ExtensionPlan(images=extension)
    if plan is not None:
        choose_photographs(plan)  # Fails before hours of painting.
    specs = parse_contestants(contestant or [])
    request = ComparisonRequest(prompts=prompts, split=split, reward=reward, run=run, specs=specs, base=base, out=out)
    options.save_config(resolved, out)
    open_all = partial(options.open_samplers, resolved, out=out, workers=workers, address=address, wait=wait)
    _show(run_comparison(request, resolved, open_all), out)
    if plan is not None:
        print(evaluate_extension(plan, resolved, run, out / "extension"))
    if views and run is not None:
        print(evaluate_views(resolved, run, out / "views"))


def _show(result: "ComparisonResult", out: Path) -> None:
    from rlhf.evaluation.comparison_tables import format_comparison
    from rlhf.reports.intervals import show_estimate

    print(format_comparison(result.report))
    if result.evaluation is not None:
        found = result.evaluation
        rates = {"independent noise": found.win_rate_independent, "same noise": found.win_rate}
        shown = ", ".join(f"{noise} {show_estimate(rate, '.1%')}" for noise, rate in rates.items() if rate is not None)
        print(f"WinRate of aligned over base (gold judge, simulated): {shown}")
        if found.hole_change is not None:
            print(f"change in the hole: {show_estimate(found.hole_change, '.1f')} of 255 levels")
    for alarm in result.report.alarms:
        print(f"ALARM, {alarm.kind}: {alarm.message}")
    print(f"page: {out / 'comparison.html'}")


def quality(
    prompts: options.PromptsFolder,
    policy: options.PolicyFolder = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
) -> None:
    """Measure a model against the originals: VAE PSNR, hole PSNR and SSIM."""
    resolved = options.resolve_config(config, overrides)
    from rlhf.data.prompts import load_prompts
    from rlhf.diffusion.builtin.model_quality import measure_quality
    from rlhf.diffusion.policy import load_policy
    from rlhf.reports.intervals import show_estimate

    steps = resolved.evaluate.num_inference_steps
    model = load_policy(resolved.model, policy)
    figures = measure_quality(model, load_prompts(prompts), num_inference_steps=steps, seed=resolved.seed)
    for name, estimate in vars(figures).items():
        print(f"{name}: {show_estimate(estimate, '.3f')} ({estimate.clusters} photographs)")
