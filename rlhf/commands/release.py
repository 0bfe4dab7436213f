"""PrefPaint's own release: its data in and out, its reward model."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import Out


def import_prefpaint(
    folder: Annotated[Path, typer.Argument(help="Folder with masks, masks_color and inpaint.")],
    out: Out,
    ids: Annotated[str | None, typer.Option(help="File of ids in it; default: its only .txt file.")] = None,
    labels: Annotated[str | None, typer.Option(help="File of labels in it; default: its only .json file.")] = None,
    split: Annotated[str, typer.Option(help="Split of all prompts.")] = "train",
    size_px: Annotated[int | None, typer.Option(help="Resample pictures to this side.", min=8)] = None,
    score_range: Annotated[tuple[float, float], typer.Option(help="Lowest and highest score.")] = (0.0, 7.0),
) -> None:
    """Turn PrefPaint's released data into prompts, candidates and annotations."""
    from rlhf.release_import import ReleaseImport, describe, import_release

    options = ReleaseImport(ids=ids, labels=labels, split=split, size_px=size_px, score_range=score_range)
    for line in describe(import_release(folder, out, options)):
        print(line)


def export_prefpaint(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
) -> None:
    """Write annotated candidates in the layout of PrefPaint's release."""
    from rlhf.release_export import export_release
    from rlhf.release_layout import describe_left_out

    summary = export_release(prompts, candidates, annotations, out)
    print(f"{summary['pictures']} pictures of {summary['ids']} prompts in {out}")
    for line in describe_left_out(summary["left_out"]):
        print(line)
