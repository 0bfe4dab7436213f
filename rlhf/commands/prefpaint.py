"""Imports of PrefPaint's release: its data and its reward model."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import Config, Out, Overrides, resolve_config
from rlhf.errors import UserError


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
    from rlhf.data.prefpaint.import_tables import ReleaseImport, describe, import_release
    from rlhf.storage.url_path import local_copy

    options = ReleaseImport(ids=ids, labels=labels, split=split, size_px=size_px, score_range=score_range)
    with local_copy(folder) as local:
        lines = describe(import_release(local, out, options))
    print("\n".join(lines))


def import_prefpaint_reward(
    checkpoint: Annotated[Path, typer.Argument(help="Released reward model: .pt, .pth or .safetensors.")],
    v_inverse: Annotated[Path, typer.Argument(help="Released V_inverse.pt.")],
    out: Out,
    prompts: Annotated[Path | None, typer.Option(help="Prompts to calibrate the bound on.")] = None,
    candidates: Annotated[Path | None, typer.Option(help="Their candidates.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Their annotations.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make a reward folder of PrefPaint's released reward model."""
    given = [folder for folder in (prompts, candidates, annotations) if folder is not None]
    if 0 < len(given) < 3:
        raise UserError("import-prefpaint-reward: --prompts, --candidates and --annotations go together")
    resolved = resolve_config(config, overrides)
    from rlhf.data.annotated_images import join_annotations
    from rlhf.data.annotators import load_annotations
    from rlhf.data.candidate_table import CandidateTable
    from rlhf.data.prompts import PromptTable
    from rlhf.rewards.learned.prefpaint_reward import adopt_prefpaint, calibrate
    from rlhf.storage.url_path import local_copy

    with local_copy(checkpoint) as network, local_copy(v_inverse) as inverse:
        adopt_prefpaint(network, inverse, out)
    if prompts is None or candidates is None or annotations is None:
        print(f"reward in {out}; no annotations to calibrate it on, so its bounds are infinite")
        return
    by_id = PromptTable(prompts)
    data = join_annotations(by_id, CandidateTable(candidates, by_id), load_annotations(annotations))
    fitted = calibrate(out, data, resolved.reward.coverage)
    print(f"reward in {out}: multiplier {fitted.conformal:.3g} for coverage {fitted.coverage} on {fitted.annotations}")
