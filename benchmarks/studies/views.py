"""Study of new views: base and aligned model compared with a stereo pair and with synthetic scenes."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.evaluation.tasks.views import evaluate_views


def main(
    run: Annotated[Path, typer.Option("--run", help="The aligned model: a run, policy folder or pipeline.")],
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the motorcycle's fills.")] = 5,
    scenes: Annotated[int, typer.Option(min=1, help="Synthetic scenes.")] = 6,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare new views of base and aligned model with true ones."""
    resolved = resolve_config(config, overrides)
    print(evaluate_views(resolved, run, out, seeds=seeds, scenes=scenes))
    save_config(resolved, out)


if __name__ == "__main__":
    run_as_program(main)
