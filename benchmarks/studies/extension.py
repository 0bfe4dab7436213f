"""Study of extension: centre strips of photographs extended to their true width, by models and by paddings."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.evaluation.tasks.extension import ExtensionPlan, evaluate_extension


def main(
    images: Annotated[Path, typer.Option("--images", help="Folder of held-out photographs.")],
    out: Out,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run, policy or pipeline folder; default: the base model alone.")
    ] = None,
    photographs: Annotated[int, typer.Option(help="How many of them, spread over the folder.")] = 24,
    growth: Annotated[float, typer.Option(help="True width over that of the centre strip.")] = 3.0,
    steps_per_side: Annotated[int, typer.Option(help="Steps from the strip to the true width.")] = 4,
    height_px: Annotated[int | None, typer.Option(help="Scale photographs down to it; default: as they are.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Extend centre strips of photographs to their true width, step by step, and compare with the true rest."""
    resolved = resolve_config(config, overrides)
    plan = ExtensionPlan(
        images=images,
        photographs=photographs,
        growth=growth,
        steps_per_side=steps_per_side,
        height_px=height_px,
    )
    print(evaluate_extension(plan, resolved, run, out))
    save_config(resolved, out)


if __name__ == "__main__":
    run_as_program(main)
