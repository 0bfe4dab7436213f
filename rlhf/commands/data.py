"""Prompts, candidates, annotations."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import CandidatesFolder, Config, Out, Overrides, PromptsFolder, resolve_config, save_config
from rlhf.errors import UserError


def prompts(
    images: Annotated[Path, typer.Option("--images", help="Folder of photographs of any size.")],
    out: Out,
    split: Annotated[str | None, typer.Option(help="Split of all prompts; default: prompts.test_share.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Cut square crops with holes from photographs."""
    resolved = resolve_config(config, overrides)
    from rlhf.prompts import make_prompts

    save_config(resolved, out)
    count = make_prompts(images, out, resolved.prompts, seed=resolved.seed, split=split)
    print(f"{count} prompts in {out}")


def candidates(
    prompts: PromptsFolder,
    out: Out,
    policy: Annotated[Path | None, typer.Option(help="Policy folder; default: the base model.")] = None,
    split: Annotated[str, typer.Option(help="Which prompts.")] = "train",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Sample inpaintings for annotation."""
    resolved = resolve_config(config, overrides)
    from rlhf.candidates import make_candidates
    from rlhf.policy import load_policy
    from rlhf.prompts import load_prompts

    save_config(resolved, out)
    loaded = load_prompts(prompts, split=split)
    model = load_policy(resolved.model, policy)
    count = make_candidates(model, loaded, out, resolved.candidates, seed=resolved.seed)
    print(f"{count} candidates in {out}")


def annotate(
    prompts: PromptsFolder,
    candidates: CandidatesFolder,
    out: Out,
    simulated: Annotated[bool, typer.Option("--simulated", help="Let simulated annotators score.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Score candidates 0-7 on structure, texture and overall."""
    if not simulated:
        raise UserError("annotate: this version has no annotation page yet; add --simulated")
    resolved = resolve_config(config, overrides)
    from rlhf.annotators import simulate_annotations
    from rlhf.candidates import load_candidates
    from rlhf.prompts import load_prompts

    save_config(resolved, out)
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images = load_candidates(candidates, by_id)
    count = simulate_annotations(by_id, images, out, resolved.annotators, seed=resolved.seed)
    print(f"{count} simulated annotations in {out}")
