"""Command with which people compare two contestants: `rlhf compare`."""

import random
from pathlib import Path
from typing import Annotated

import typer

from rlhf.commands.options import Database, Out, PageHost, PagePort

Evaluation = Annotated[Path, typer.Option("--evaluation", help="Folder that `rlhf evaluate` wrote.")]


def compare(
    first: Annotated[str, typer.Argument(help="Contestant of the evaluation, such as `aligned`.")],
    second: Annotated[str, typer.Argument(help="Other contestant, such as `base`.")],
    evaluation: Evaluation,
    prompts: Annotated[Path, typer.Option("--prompts", help="Prompts of that evaluation.")],
    out: Out,
    host: PageHost = "127.0.0.1",
    port: PagePort = 8001,
    database: Database = None,
    overlap: Annotated[int, typer.Option(min=1, help="Number of people who see each pair.")] = 1,
    repeat: Annotated[float, typer.Option(min=0, max=1, help="Share of pairs shown twice to the same person.")] = 0.05,
    lease_minutes: Annotated[float, typer.Option(min=0.05, help="Idle minutes until a pair goes to another.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs to compare, at random; default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of pairs.")] = 0,
    export: Annotated[bool, typer.Option("--export", help="Only report the choices so far.")] = False,
) -> None:
    """Let people choose blindly between two contestants' images on a web page, and report the preference."""
    from rlhf.data.annotation.export import open_study
    from rlhf.data.annotation.store import Assignment
    from rlhf.errors import UserError
    from rlhf.evaluation.blind_choices import SUMMARY, format_choices, lay_out_pairs, read_summary

    pairs = lay_out_pairs(evaluation, first, second, prompts, out)
    order = random.Random(seed).sample(pairs.items.prompt_ids, len(pairs.items.prompt_ids))[:limit]
    assignment = Assignment(order=tuple(order), overlap=overlap, repeat=repeat, lease_s=60 * lease_minutes, seed=seed)
    store = open_study(pairs.items, assignment, out, database)
    if export:
        count = pairs.export(store, out)
        store.database.close()
        if not count:
            raise UserError(f"{store.database.name}: nobody has chosen yet; start the page without --export")
    else:
        from serve.annotation.annotation_page import Page
        from serve.annotation.annotation_server import run

        run(store, pairs.items, out, host, port, Page("compare.html", "preferences.parquet", pairs.export))
    if (out / SUMMARY).is_file():
        print(format_choices(read_summary(out / SUMMARY)))
