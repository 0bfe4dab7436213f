"""Studies of the method's claims: long, resumable, and said plainly where they fail."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config

study = typer.Typer(help="Studies of what the method claims; each goes on where it was interrupted.")


@study.command()
def bound(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    resplits: Annotated[int, typer.Option(min=1, help="Splits of the photographs.")] = 20,
    ensemble: Annotated[int, typer.Option(min=2, help="Networks of the deep ensemble.")] = 5,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare kinds of uncertainty on the same splits: coverage, width, and what they know of errors."""
    resolved = resolve_config(config, overrides)
    import torch

    from rlhf.annotated_images import join_annotations
    from rlhf.annotators import load_annotations, noiseless_scores
    from rlhf.bound_study import format_table, study_bound
    from rlhf.candidates import load_candidates
    from rlhf.prompts import load_prompts

    save_config(resolved, out)
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images, rows = load_candidates(candidates, by_id), load_annotations(annotations)
    is_simulated = all(row["is_simulated"] for row in rows)
    truth = torch.from_numpy(noiseless_scores(by_id, images, rows)) if is_simulated else None
    data = join_annotations(by_id, images, rows)
    print(format_table(study_bound(data, truth, resolved.reward, out, resplits=resplits, ensemble=ensemble)))


@study.command()
def shift(
    reward: Annotated[Path, typer.Argument(help="Reward folder.")],
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates; best of photographs of part D alone.")],
    out: Out,
) -> None:
    """Corrupt the fills by degrees, and show how the reward's uncertainty answers."""
    import torch

    from rlhf.candidates import load_candidates
    from rlhf.prompts import load_prompts
    from rlhf.reward_model import load_reward
    from rlhf.shift_study import format_corruptions, study_corruptions
    from rlhf.storage import atomic_write_json

    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images = load_candidates(candidates, by_id)
    masks = torch.stack([by_id[prompt_id].mask for prompt_id, _ in images])
    table = study_corruptions(load_reward(reward), torch.stack(list(images.values())), masks)
    atomic_write_json(out / "shift_study.json", table)
    print(format_corruptions(table))


@study.command()
def selection(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, help="Splits of the photographs.")] = 10,
    portion: Annotated[float, typer.Option(min=0.01, max=0.33, help="Share annotated in each of three rounds.")] = 0.2,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Does active choice pay? Rewards of equally many annotations, chosen by uncertainty or at random."""
    resolved = resolve_config(config, overrides)
    import torch

    from rlhf.annotated_images import join_annotations
    from rlhf.annotators import load_annotations, noiseless_scores
    from rlhf.candidates import load_candidates
    from rlhf.prompts import load_prompts
    from rlhf.selection_study import format_table, study_selection

    save_config(resolved, out)
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images, rows = load_candidates(candidates, by_id), load_annotations(annotations)
    is_simulated = all(row["is_simulated"] for row in rows)
    truth = torch.from_numpy(noiseless_scores(by_id, images, rows)) if is_simulated else None
    data = join_annotations(by_id, images, rows)
    summary = study_selection(data, truth, resolved.reward, out, seeds=seeds, portion=portion)
    print(format_table(summary) + ("; all annotators simulated" if is_simulated else ""))


@study.command()
def rounds(
    runs: Annotated[
        list[str], typer.Argument(help="Folders of `rlhf rounds`, or NAME=FOLDER: one per seed of each name.")
    ],
    out: Out,
) -> None:
    """Compare finished `rlhf rounds`, the first over the others: WinRate and gain by the gold judge."""
    from rlhf.rounds_study import format_study, study_rounds

    named = []
    for run in runs:
        name, _, folder = run.rpartition("=")
        named.append((name or Path(folder).name, Path(folder)))
    print(format_study(study_rounds(named, out)))
