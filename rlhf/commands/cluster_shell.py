"""Checks commands of `rlhf` and `ray` in cluster files by parsing them, without running them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.config_files import load_config
from rlhf.errors import UserError

IMAGE_FOLDER = "/app/"
"""Folder of the container image that holds cluster/runs."""
SEPARATORS = {";", "&&", "||", "|", "&"}


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """The repository and the command that cluster files refer to."""

    root: Path
    """Folder of the repository."""
    rlhf: Any
    """The click command `rlhf`."""


def command_problems(line: str, checkout: Checkout) -> list[str]:
    """Returns the problems of a line of shell; programs other than `rlhf` and `ray` are not checked.

    Files that the line names must exist in the checkout.
    """
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        tokens = list(lexer)
    except ValueError as error:
        return [f"{line}: not a shell command ({error})"]
    problems, command = [], []
    for token in [*tokens, ";"]:
        if token not in SEPARATORS:
            command.append(token)
            continue
        problems += _simple_command_problems(command, checkout)
        command = []
    return problems


def _simple_command_problems(tokens: list[str], checkout: Checkout) -> list[str]:
    while tokens and re.match(r"\w+=", tokens[0]):
        tokens = tokens[1:]
    if tokens[:3] in (["python", "-m", "rlhf"], ["python3", "-m", "rlhf"]):
        tokens = tokens[2:]
    if not tokens or tokens[0] not in ("rlhf", "ray"):
        return []
    return _rlhf_problems(tokens[1:], checkout) if tokens[0] == "rlhf" else _ray_problems(tokens[1:], checkout)


def _rlhf_problems(arguments: list[str], checkout: Checkout) -> list[str]:
    """Returns the problems of a command, its options, its run file and the keys in --set."""
    arguments = [a for a in arguments if a not in (">", "/dev/null")]
    if arguments == ["--help"]:
        return []
    problems, values = _parse(checkout.rlhf, arguments, "rlhf")
    if problems:
        return problems
    file = values.get("config")
    if file is not None:
        file = checkout.root / str(file).removeprefix(IMAGE_FOLDER)
        if not file.is_file():
            return [f"rlhf {arguments[0]}: --config {values['config']} does not exist"]
    try:
        load_config(file, tuple(values.get("overrides") or ()))
    except UserError as error:
        return [f"rlhf {arguments[0]}: {line}" for line in str(error).splitlines()]
    return []


def _ray_problems(arguments: list[str], checkout: Checkout) -> list[str]:
    """Returns the problems of a Ray command and its options, and of the command that it starts."""
    from ray.scripts.scripts import cli

    own, entrypoint = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, entrypoint = arguments[:cut], arguments[cut + 1 :]
    problems, values = _parse(cli, [*own, "--", *entrypoint] if entrypoint else own, "ray")
    if own[:1] == ["symmetric-run"] and not problems:
        # symmetric-run passes unknown options to `ray start`.
        rest = [a for a in values["ray_args_and_entrypoint"] if a not in entrypoint]
        problems += _parse(cli, ["start", *rest], "ray")[0]
    problems += [
        f"ray {' '.join(own[:2])}: {values[name]} does not exist"
        for name in ("cluster_config_file", "runtime_env", "working_dir")
        if values.get(name) and not (checkout.root / values[name]).exists()
    ]
    return problems + (_simple_command_problems(entrypoint, checkout) if entrypoint else [])


def _parse(command: Any, arguments: list[str], name: str) -> tuple[list[str], dict[str, Any]]:
    """Returns problems, and the options of the innermost command; `command` is click's, or typer's copy of it."""
    while hasattr(command, "commands"):
        if not arguments or arguments[0] not in command.commands:
            known = ", ".join(sorted(command.commands))
            return [f"{name}: no command {arguments[0] if arguments else ''!r}; there are {known}"], {}
        command, name, arguments = command.commands[arguments[0]], f"{name} {arguments[0]}", arguments[1:]
    try:
        return [], command.make_context(name, list(arguments)).params
    except _usage_errors() as error:
        return [f"{name}: {error.format_message()}"], {}


def _usage_errors() -> tuple[Any, ...]:
    """Returns the classes that an unknown option raises: click's for Ray, that of typer's copy of click for `rlhf`."""
    import click
    import typer

    return click.UsageError, typer.BadParameter.__base__
