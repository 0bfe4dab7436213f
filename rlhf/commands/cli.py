"""The command `rlhf`."""

import os
import sys

import typer

from rlhf.commands import (
    cluster,
    compare,
    data,
    demo,
    evaluate,
    extend,
    novel_view,
    plan,
    prefpaint,
    promotion,
    reward_server,
    rounds,
    serve,
    training,
)
from rlhf.commands.options import take_urls
from rlhf.errors import RunInterruptedError, UserError

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
    prefpaint.import_prefpaint,
    training.reward,
    prefpaint.import_prefpaint_reward,
    plan.plan,
    training.align,
    evaluate.evaluate,
    compare.compare,
    demo.report,
    promotion.export,
    promotion.import_lora,
    serve.serve,
    promotion.promote,
    promotion.rollback,
    promotion.models,
    serve.api_key,
    reward_server.reward_server,
    evaluate.quality,
    extend.extend,
    novel_view.novel_view,
    training.pretrain,
    demo.demo,
    cluster.check_cluster,
    cluster.doctor,
    rounds.rounds,
)
for command in COMMANDS:
    take_urls(command)
    app.command()(command)

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "DEEPSPEED_LOG_LEVEL": "error"}
"""Environment variables that silence the libraries' notes."""
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""PyTorch's threads sleep while they wait for each other.

By default they spin, and where other processes want the same cores, each spins away the time that the other needs.
"""


def main() -> None:
    """Runs a command; an error that the user can mend ends with exit code 2 and no traceback.

    A run that was asked to end and has saved its work ends with exit code 75.
    """
    for name, value in (QUIET | SLEEPING).items():
        os.environ.setdefault(name, value)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunInterruptedError as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(RunInterruptedError.EXIT_CODE)
    except KeyboardInterrupt:
        print("interrupted; what was finished is on disk", file=sys.stderr)
        sys.exit(130)
