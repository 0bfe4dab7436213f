"""Studies of the method's claims: long, resumable, and said plainly where they fail."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.storage.url_path import as_path

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
    from benchmarks.studies.bound import format_table, study_bound

    save_config(resolved, out)
    data, truth = _load_annotated(prompts, candidates, annotations)
    print(format_table(study_bound(data, truth, resolved.reward, out, resplits=resplits, ensemble=ensemble)))


@study.command()
def shift(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Candidates of another source, with their prompts/ beside them; may be repeated."),
    ] = None,
    resplits: Annotated[int, typer.Option(min=1, help="Splits of the photographs.")] = 6,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Ask for what was never annotated: corrupted fills, other hole families, other sources. Does uncertainty rise?"""
    resolved = resolve_config(config, overrides)
    import torch

    from benchmarks.studies.shift import ShiftedImages, format_shifts, study_shift
    from rlhf.data.annotated_images import join_annotations
    from rlhf.data.annotators import load_annotations
    from rlhf.data.prompts import load_prompts
    from rlhf.diffusion.candidates import load_candidates

    save_config(resolved, out)
    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    data = join_annotations(by_id, load_candidates(candidates, by_id), load_annotations(annotations))
    families = [by_id[prompt_id].hole for prompt_id, _ in data.keys]
    others = {}
    for folder in other or []:
        own = {p.prompt_id: p for p in load_prompts(folder / "prompts")}
        images = load_candidates(folder, own)
        masks = torch.stack([own[prompt_id].mask for prompt_id, _ in images])
        others[folder.parent.name or folder.name] = ShiftedImages(
            images=torch.stack(list(images.values())), masks=masks
        )
    print(format_shifts(study_shift(data, families, others, resolved.reward, out, resplits=resplits)))


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
    from benchmarks.studies.selection import format_table, study_selection

    save_config(resolved, out)
    data, truth = _load_annotated(prompts, candidates, annotations)
    summary = study_selection(data, truth, resolved.reward, out, seeds=seeds, portion=portion)
    print(format_table(summary) + ("" if truth is None else "; all annotators simulated"))


@study.command()
def runs(
    folders: Annotated[
        list[str],
        typer.Argument(help="Folders of `rlhf rounds` or `evaluate`, or NAME=FOLDER: one per seed of each name."),
    ],
    out: Out,
) -> None:
    """Compare the last policies of finished runs, the first over the others: WinRate and gain by the gold judge."""
    from benchmarks.studies.runs import format_study, study_runs

    named = []
    for entry in folders:
        name, _, folder = entry.partition("=")
        if not folder or "/" in name:  # of a path or URL that holds "="
            name, folder = as_path(entry).name, entry
        named.append((name, as_path(folder)))
    print(format_study(study_runs(named, out)))


@study.command()
def extension(
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
    """Extend centre strips of photographs to their true width, step by step: how far does it go well?"""
    resolved = resolve_config(config, overrides)
    from rlhf.evaluation.tasks.extension_figures import format_table
    from rlhf.evaluation.tasks.extension_study import (
        ExtensionPlan,
        describe_contestants,
        open_contestants,
        study_extension,
    )

    plan = ExtensionPlan(
        images=images,
        photographs=photographs,
        growth=growth,
        steps_per_side=steps_per_side,
        height_px=height_px,
        bootstrap=resolved.evaluate.bootstrap,
    )
    plan.check()
    settings = describe_contestants(resolved, run)
    summary = study_extension(plan, lambda: open_contestants(resolved, run), out, settings)
    save_config(resolved, out)
    print(format_table(summary))


@study.command()
def views(
    run: Annotated[Path, typer.Option("--run", help="The aligned model: a run, policy folder or pipeline.")],
    out: Out,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the motorcycle's fills.")] = 5,
    scenes: Annotated[int, typer.Option(min=1, help="Synthetic scenes.")] = 6,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """New views against true ones, base and aligned: a stereo pair, and clouds of synthetic scenes."""
    resolved = resolve_config(config, overrides)
    from functools import cache

    from rlhf.diffusion.policy import load_policy
    from rlhf.diffusion.policy_folders import locate_policy
    from rlhf.evaluation.tasks.views_figures import draw_figure, format_table, write_csv
    from rlhf.evaluation.tasks.views_study import study_views
    from rlhf.views.novel_view import Fill, paint_with

    aligned_model, aligned = locate_policy(resolved.model, run)
    steps, seed = resolved.evaluate.num_inference_steps, resolved.seed

    @cache
    def open_policy(name: str):  # noqa: ANN202
        # The base of an adapter is its own base model; that of a whole pipeline is the one of the configuration.
        base = aligned_model if aligned is not None else resolved.model
        return load_policy(base) if name == "base" else load_policy(aligned_model, aligned)

    def open_fill(name: str, number: int) -> Fill:
        return paint_with(open_policy(name), num_inference_steps=steps, seed=seed + number)

    settings = {
        "model": resolved.model.path,
        "aligned": str(aligned or run),
        "policy_version": open_policy("aligned").version,
        "num_inference_steps": steps,
        "seed": seed,
    }
    save_config(resolved, out)
    summary = study_views(open_fill, settings, out, seeds=seeds, scenes=scenes)
    write_csv(summary, out / "views_study.csv")
    draw_figure(summary, out / "views_study.png")
    print(format_table(summary))


@study.command()
def trust(
    out: Out,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of photographs to train on.")] = None,
    eval_images: Annotated[
        Path | None, typer.Option("--eval-images", help="Folder of photographs to judge on.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of no weight against the proper one.")] = 5,
    other_seeds: Annotated[int, typer.Option(min=1, help="Seeds of the other arms.")] = 3,
    annotated: Annotated[int, typer.Option(min=1, help="Candidates annotated per seed: few.")] = 360,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; only tell of what is finished.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Does trust pay? Alignments that over-optimise a reward of few annotations; goes on arm by arm."""
    from benchmarks.studies.trust import TrustPlan, run_trust_study
    from benchmarks.studies.trust_figures import draw_figure, format_table, write_csv
    from benchmarks.studies.trust_summary import summarise
    from rlhf.storage.atomic_files import atomic_write_json
    from rlhf.workflows.demo import choose_photographs, find_run_file

    if not report:
        resolved = resolve_config(config or find_run_file("trust_study"), overrides)
        train, judged = choose_photographs("study trust", out, images, eval_images)
        plan = TrustPlan(images=train, eval_images=judged, seeds=seeds, other_seeds=other_seeds, annotated=annotated)
        run_trust_study(plan, resolved, out)
    summary = summarise(out, seeds, other_seeds)
    atomic_write_json(out / "trust_study.json", summary)
    write_csv(summary, out / "trust_study.csv")
    draw_figure(summary, out / "trust_study.png")
    print(format_table(summary))


def _load_annotated(prompts: Path, candidates: Path, annotations: Path):  # noqa: ANN202
    """Annotated images and, where all annotators are simulated, their scores without noise; else None."""
    import torch

    from rlhf.data.annotated_images import join_annotations
    from rlhf.data.annotators import load_annotations, noiseless_scores
    from rlhf.data.prompts import load_prompts
    from rlhf.diffusion.candidates import load_candidates

    by_id = {p.prompt_id: p for p in load_prompts(prompts)}
    images, rows = load_candidates(candidates, by_id), load_annotations(annotations)
    is_simulated = all(row["is_simulated"] for row in rows)
    truth = torch.from_numpy(noiseless_scores(by_id, images, rows)) if is_simulated else None
    return join_annotations(by_id, images, rows), truth
