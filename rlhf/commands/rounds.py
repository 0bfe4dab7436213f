"""Command that repeats the method: annotate, learn the reward, align."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.data import Selection
from rlhf.commands.options import Config, Out, Overrides, holds_out


@holds_out
def rounds(
    images: Annotated[Path, typer.Option("--images", help="Training photographs.")],
    eval_images: Annotated[Path, typer.Option("--eval-images", help="Held-out photographs.")],
    annotations_per_round: Annotated[int, typer.Option(min=1, help="Candidates annotated in each round.")],
    out: Out = Path("runs/rounds"),
    count: Annotated[int, typer.Option("--rounds", min=1, help="Number of rounds.")] = 3,
    select: Annotated[Selection, typer.Option(help="Prompts to annotate from the second round on.")] = "uncertain",
    people: Annotated[bool, typer.Option("--people", help="People annotate, not simulated annotators.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Annotate, learn the reward, align, evaluate; repeat from the aligned policy. Resumes where it was interrupted."""
    from rlhf.workflows.rounds import run_rounds

    run_rounds(
        out,
        images,
        eval_images,
        rounds=count,
        annotations_per_round=annotations_per_round,
        select=select,
        people=people,
        config=config,
        overrides=tuple(overrides or ()),
    )
