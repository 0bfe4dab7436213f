"""The command `rlhf`."""

import os
import sys

import typer

from benchmarks.studies import commands as studies
from rlhf.commands import cluster, data, serving, training
from rlhf.commands import compare as comparison
from rlhf.commands import evaluating as results
from rlhf.commands import extend as extension
from rlhf.commands import novel_view as views
from rlhf.commands import prefpaint as release
from rlhf.commands import reward_server as rewards
from rlhf.commands import rounds as refinement
from rlhf.commands.options import take_urls
from rlhf.errors import UserError

app = typer.Typer(
    name="rlhf",
    help="Align inpainting diffusion models with people's preferences, on one machine or a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS = (
    data.prompts,
    data.candidates,
    data.annotate,
    release.import_prefpaint,
    release.export_prefpaint,
    training.reward,
    release.import_prefpaint_reward,
    training.align,
    results.evaluate,
    comparison.compare,
    results.report,
    results.export,
    serving.serve,
    serving.promote,
    serving.rollback,
    serving.models,
    serving.api_key,
    rewards.reward_server,
    results.quality,
    extension.extend,
    views.novel_view,
    training.pretrain,
    results.demo,
    cluster.check_cluster,
    cluster.doctor,
    refinement.rounds,
)
for command in COMMANDS:
    take_urls(command)
    app.command()(command)
for entry in studies.study.registered_commands:
    take_urls(entry.callback)
app.add_typer(studies.study, name="study")

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "DEEPSPEED_LOG_LEVEL": "error"}
"""Libraries whose notes say nothing to a user of this command."""


def main() -> None:
    """Run a command; an error that the user can mend ends with exit code 2 and no traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is on disk", file=sys.stderr)
        sys.exit(130)
