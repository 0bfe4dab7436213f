"""Commands that run all stages and write the report: `rlhf demo` and `rlhf report`."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import (
    Config,
    Out,
    Overrides,
    holds_out,
)


@holds_out
def demo(
    out: Out = Path("runs/demo"),
    images: Annotated[
        Path | None, typer.Option("--images", help="Training photographs; default: the package's own.")
    ] = None,
    eval_images: Annotated[Path | None, typer.Option("--eval-images", help="Held-out photographs.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Run all stages from photographs to an aligned model and a report; resume where they were interrupted."""
    from rlhf.workflows.demo import run_demo

    run_demo(out, images, eval_images, config, tuple(overrides or ()))


def report(run: Annotated[Path, typer.Argument(help="Folder of a whole run, such as runs/demo.")]) -> None:
    """Write the run's self-contained HTML report again."""
    from rlhf.workflows.run_report import write_report

    print(f"report in {write_report(run)}")
