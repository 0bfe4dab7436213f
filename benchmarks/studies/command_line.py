"""Runs one study as a program: `python -m benchmarks.studies.NAME`."""

import sys
from collections.abc import Callable

import typer

from rlhf.commands.options import take_urls
from rlhf.errors import UserError


def run_as_program(study: Callable[..., None]) -> None:
    """Runs a study with the options of this process; a UserError ends it with exit code 2 and no traceback."""
    take_urls(study)
    try:
        typer.run(study)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
