"""Commands `prompts`, `candidates` and `annotate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhf.commands import options

if TYPE_CHECKING:
    from rlhf.config.run_config import RunConfig
    from rlhf.data.annotation.items import AnnotationItems
    from rlhf.data.annotation.store import Assignment

Selection = Literal["random", "uncertain"]
Repeat = Annotated[float, typer.Option(min=0, max=1, help="Share of prompts shown twice to the same person.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Largest number of candidates, in whole prompts; default: all.")]
Captions = Annotated[
    Path | None,
    typer.Option("--captions", help="JSON lines of file_name and text; default: .txt files beside the photographs."),
]
Earlier = Annotated[
    list[Path] | None,
    typer.Option("--earlier", help="Folder of earlier annotations, whose prompts come last; repeatable."),
]


def prompts(
    images: Annotated[Path, typer.Option("--images", help="Folder of photographs of any size.")],
    out: options.Out,
    captions: Captions = None,
    split: Annotated[str | None, typer.Option(help="Split of all prompts; default: prompts.test_share.")] = None,
    size_px: Annotated[int | None, typer.Option(min=1, help="Side of the crops; default: prompts.size_px.")] = None,
    buckets: Annotated[bool, typer.Option("--buckets", help="Keep shapes: crops of several aspect ratios.")] = False,
    config: options.Config = None,
    overrides: options.Overrides = None,
) -> None:
    """Cut crops with holes from photographs: squares, or with --buckets crops of several aspect ratios."""
    chosen = ([f"prompts.size_px={size_px}"] if size_px else []) + (["prompts.buckets=true"] if buckets else [])
    resolved = options.resolve_config(config, (overrides or []) + chosen)
    from rlhf.data.buckets import format_buckets
    from rlhf.data.prompt_cutting import make_prompts
    from rlhf.data.prompts import PromptTable
    from rlhf.storage.url_path import local_copy

    options.save_config(resolved, out)
    with local_copy(images) as folder:
        count = make_prompts(folder, out, resolved.prompts, seed=resolved.seed, split=split, captions=captions)
    if resolved.prompts.buckets:
        print(format_buckets(PromptTable(out).sizes.values()))
    print(f"{count} prompts in {out}")


@options.holds_out
def candidates(
    prompts: options.PromptsFolder,
    out: options.Out,
    policy: options.PolicyFolder = None,
    split: options.Split = "train",
    first_sample: Annotated[int, typer.Option(min=0, help="Index of the first sample, if earlier ones exist.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace candidates of other settings.")] = False,
    workers: options.Workers = None,
    address: options.SamplersAddress = None,
    wait: options.Wait = False,
    config: options.Config = None,
    overrides: options.Overrides = None,
) -> None:
    """Sample inpaintings for annotation, in this process or on Ray; resumes after an interruption."""
    resolved = options.resolve_config(config, overrides)
    from rlhf.data.prompts import PromptTable
    from rlhf.diffusion.candidates import claim_folder, describe_origin, keep_prompts, make_candidates
    from rlhf.diffusion.families.open_family import check_guided_captions, check_sizes

    table = PromptTable(prompts, split=split)
    check_guided_captions(resolved.model, table.captions)
    check_sizes(resolved.model, table.sizes)
    origin = describe_origin(resolved, prompts, policy, split=split, first_sample=first_sample)
    claim_folder(out, origin, overwrite=overwrite)
    options.save_config(resolved, out)
    keep_prompts(prompts, out)
    settings = {"seed": resolved.seed, "first_sample": first_sample}
    with options.open_samplers(resolved, table, [policy], out, workers, address, wait) as open_policy:
        count = make_candidates(open_policy(policy), table.sizes, out, resolved.candidates, **settings)
    print(f"{count} candidates in {out}")


def annotate(
    candidates: Annotated[Path, typer.Argument(help="Folder that `rlhf candidates` wrote.")],
    out: options.Out,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Prompts; default: the candidates' copy.")] = None,
    simulated: Annotated[bool, typer.Option("--simulated", help="Let simulated annotators score.")] = False,
    host: options.PageHost = "127.0.0.1",
    port: options.PagePort = 8001,
    database: options.Database = None,
    overlap: Annotated[int, typer.Option(min=1, help="Number of people who get each prompt.")] = 1,
    repeat: Repeat = 0.05,
    lease_minutes: Annotated[float, typer.Option(min=0.05, help="Idle minutes until a prompt goes to another.")] = 10,
    select: Annotated[Selection, typer.Option(help="Order of the prompts; `uncertain` needs --reward.")] = "random",
    reward: Annotated[Path | None, typer.Option("--reward", help="Reward folder, for `--select uncertain`.")] = None,
    limit: Limit = None,
    earlier: Earlier = None,
    export: Annotated[bool, typer.Option("--export", help="Only write OUT/annotations.parquet anew.")] = False,
    config: options.Config = None,
    overrides: options.Overrides = None,
) -> None:
    """Score candidates 0-7 on structure, texture and overall, on a web page that several people share."""
    resolved = options.resolve_config(config, overrides)
    from rlhf.diffusion.candidates import prompts_of

    prompts = prompts_of(candidates, prompts)
    if simulated:
        _simulate(resolved, candidates, prompts, out, select, reward, limit, tuple(earlier or ()))
        return
    from rlhf.data.annotation.export import export_by_hand
    from rlhf.data.annotation.items import load_items
    from rlhf.data.annotation.store import Assignment
    from rlhf.rewards.learned.prompt_choice import order_prompts

    items = load_items(candidates, prompts)
    if export:
        print(f"{export_by_hand(items, out, database)} judgements in {out / 'annotations.parquet'}")
        return
    order = order_prompts(items, select, reward, seed=resolved.seed, limit=limit, earlier=tuple(earlier or ()))
    assignment = Assignment(order=order, overlap=overlap, repeat=repeat, lease_s=60 * lease_minutes, seed=resolved.seed)
    _serve_page(resolved, items, assignment, out, database, host, port)


def _serve_page(
    resolved: "RunConfig",
    items: "AnnotationItems",
    assignment: "Assignment",
    out: Path,
    database: str | None,
    host: str,
    port: int,
) -> None:
    from rlhf.data.annotation.export import open_study
    from serve.annotation.annotation_server import run

    store = open_study(items, assignment, out, database)
    options.save_config(resolved, out)
    run(store, items, out, host, port)


def _simulate(
    resolved: "RunConfig",
    candidates: Path,
    prompts: Path,
    out: Path,
    select: str,
    reward: Path | None,
    limit: int | None,
    earlier: tuple[Path, ...],
) -> None:
    from rlhf.data.annotation.export import refuse_peoples_annotations
    from rlhf.data.annotators import simulate_annotations
    from rlhf.data.candidate_table import CandidateTable
    from rlhf.data.prompts import PromptTable
    from rlhf.rewards.learned.prompt_choice import choose_candidates

    refuse_peoples_annotations(out)
    options.save_config(resolved, out)
    by_id = PromptTable(prompts)
    images = CandidateTable(candidates, by_id)
    if reward is not None or limit is not None or select != "random" or earlier:
        keys = choose_candidates(by_id, images, select, reward, seed=resolved.seed, limit=limit, earlier=earlier)
    else:
        keys = list(images)
    count = simulate_annotations(by_id, images, out, resolved.annotators, seed=resolved.seed, keys=keys)
    print(f"{count} simulated annotations of {len(keys)} candidates in {out}")
