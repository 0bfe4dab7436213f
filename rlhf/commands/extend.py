"""A photograph continued beyond its borders."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import Config, Out, Overrides, holds_out, resolve_config, save_config

Pixels = Annotated[int, typer.Option(help="Pixels to add there.")]


@holds_out
def extend(
    image: Annotated[Path, typer.Argument(help="A photograph of any size.")],
    left: Pixels = 0,
    right: Pixels = 0,
    top: Pixels = 0,
    bottom: Pixels = 0,
    step: Annotated[
        int | None, typer.Option(help="Pixels that one step adds at most; default: four steps, or more for wide ones.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Run, policy or pipeline folder; default: the configuration's model.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Different continuations.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise; default: the configuration's.")] = None,
    out: Out = Path("extended"),
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Extend a photograph step by step at its sides: a panorama, and a GIF of how it grew."""
    given = [*(overrides or ()), *([] if seed is None else [f"seed={seed}"])]
    resolved = resolve_config(config, given)
    from rlhf.views.extension import extend as run
    from rlhf.views.growth import Margins

    margins = Margins(left=left, right=right, top=top, bottom=bottom)
    pictures = run(image, margins, out, resolved, model=model, step_px=step, samples=samples)
    save_config(resolved, out)
    print(f"extended: {', '.join(map(str, pictures))}")
