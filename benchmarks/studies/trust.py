"""Tests whether trust pays, with alignments that over-optimise a reward from few annotations."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.studies.command_line import run_as_program
from benchmarks.studies.trust_arms import TrustPlan, run_trust_study
from benchmarks.studies.trust_figures import draw_figure, format_table, tabulate
from benchmarks.studies.trust_summary import summarise
from rlhf.commands.options import Config, Out, Overrides, resolve_config
from rlhf.config.config_files import find_run_file
from rlhf.data.photographs import choose_photograph_folders
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text


def main(
    out: Out,
    images: Annotated[Path | None, typer.Option("--images", help="Folder of photographs to train on.")] = None,
    eval_images: Annotated[
        Path | None, typer.Option("--eval-images", help="Folder of photographs to judge on.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of no weight against the proper one.")] = 5,
    other_seeds: Annotated[int, typer.Option(min=1, help="Seeds of the other arms.")] = 3,
    annotated: Annotated[int, typer.Option(min=1, help="Candidates annotated per seed: few.")] = 360,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; only report what is finished.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Test whether trust pays, with alignments that over-optimise a reward from few annotations; resumes arm by arm."""
    if not report:
        resolved = resolve_config(config or find_run_file("trust_study"), overrides)
        train, judged = choose_photograph_folders("study trust", images, eval_images)
        plan = TrustPlan(images=train, eval_images=judged, seeds=seeds, other_seeds=other_seeds, annotated=annotated)
        run_trust_study(plan, resolved, out)
    summary = summarise(out, seeds, other_seeds)
    atomic_write_json(out / "trust_study.json", asdict(summary))
    atomic_write_text(out / "trust_study.csv", tabulate(summary).to_csv(index=False, lineterminator="\n"))
    draw_figure(summary, out / "trust_study.png")
    print(format_table(summary))


if __name__ == "__main__":
    run_as_program(main)
