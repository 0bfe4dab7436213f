"""Reads the commands of `rlhf` and `ray` in cluster files by parsing them, without running them."""

import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.config_files import load_config
from rlhf.config.run_config import RunConfig
from rlhf.errors import UserError

IMAGE_FOLDER = "/app/"
"""Folder of the container image that holds cluster/runs."""
UNKNOWN = "987654321"
"""Stands for a word that only the shell knows; a number, so that options of every type take it."""
KEYWORDS = {"if", "then", "else", "elif", "do", "while", "until", "!", "{", "time", "exec", "nohup", "command"}
COMMENT = re.compile(r"""((?:[^'"#\\]|\\.|'[^']*'|"(?:\\.|[^"\\])*"|(?<=\S)#)*)#.*""", re.DOTALL)
RUNNERS = {"srun", "env", "timeout", "nice", "setsid", "sudo", "mpirun", "stdbuf"}


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """The repository and the command that cluster files refer to."""

    root: Path
    """Folder of the repository."""
    rlhf: Any
    """The click command `rlhf`."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `rlhf` or `ray`, without the programs that start it."""

    words: list[str]
    """The program (`rlhf` or `ray`), then its arguments; UNKNOWN where only the shell knows."""
    runner: list[str] = field(default_factory=list)
    """The words before the program: assignments, `srun` and its options, and so on."""
    in_background: bool = False
    """Whether the shell goes on beside it; taken for granted where a function of the script starts it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A command of `rlhf` that reads a run file."""

    name: str
    """Such as `align`."""
    file: str
    """The run file as a message names it."""
    config: RunConfig
    options: Mapping[str, Any]


def command_problems(text: str, checkout: Checkout, variables: Mapping[str, str] | None = None) -> list[str]:
    """Returns the problems of shell commands; programs other than `rlhf` and `ray` are not checked.

    `variables` are those that the shell will have. Files that the commands name must exist in the checkout.
    """
    try:
        commands = list(read_commands(text, variables))
    except ValueError as error:
        where = "the script" if "\n" in text.strip() else text
        return [f"{where}: not a shell command ({error})"]
    return [p for c in commands for p in _problems(c.words, checkout)]


def find_runs(text: str, checkout: Checkout, variables: Mapping[str, str] | None = None) -> list[Run]:
    """Returns the commands of `rlhf` in shell text without problems, but those whose run file only the shell knows."""
    runs = []
    for command in read_commands(text, variables):
        words = command.words
        if words[0] == "ray" and "--" in words:
            words = _program(words[words.index("--") + 1 :])[1]
        if words[:1] == ["rlhf"]:
            _, run = _parse_rlhf(words[1:], checkout)
            runs += [] if run is None else [run]
    return runs


def read_commands(text: str, variables: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Yields the commands of `rlhf` and `ray` in shell text. Raises ValueError if a quotation does not end."""
    known = read_variables(text, variables or {})
    functions = set(re.findall(r"^\s*(?:function\s+)?(\w+)\s*\(\)", text, re.MULTILINE))
    for words, separator in _simple_commands(text):
        filled = [_fill(word, known) for word in words]
        runner, program = _program(filled, functions)
        if program[:1] in (["bash"], ["sh"]) and "-c" in program[:-1]:
            yield from read_commands(program[program.index("-c") + 1], known)
        elif program:
            is_function = not functions.isdisjoint(runner)
            yield Command(words=program, runner=runner, in_background=is_function or separator == "&")


def read_variables(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Returns `variables` and those that shell text sets; UNKNOWN for what is set twice, or by a command."""
    known = dict(variables)
    assigned: dict[str, str] = {}
    for words, _ in _simple_commands(text):
        for word in words[1:] if words[:1] in (["export"], ["readonly"], ["local"]) else words:
            name, equals, value = word.partition("=")
            if not equals or not name.isidentifier():
                break
            filled = _fill(value, known)
            known[name] = assigned[name] = filled if assigned.get(name, filled) == filled else UNKNOWN
    return known


def _fill(word: str, known: Mapping[str, str]) -> str:
    """Returns a word with the values of its variables; UNKNOWN, or --option=UNKNOWN, where the shell alone has them."""

    def value(match: re.Match[str]) -> str:
        return known.get(match[1] or match[2], match[0] if match[3] is None else match[3])

    # The end of a default that holds a command is cut off.
    filled = re.sub(r"\$(\w+)|\$\{(\w+)(?::?-([^{}]*))?(?:\}|$)", value, word)
    option = re.match(r"--[\w-]+=", filled)
    is_known = not any(mark in filled for mark in ("$", "`", UNKNOWN))
    return filled if is_known else f"{'' if option is None else option[0]}{UNKNOWN}"


def _simple_commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Yields each simple command's words, without redirections, and the separator behind it."""
    for line in _logical_lines(text):
        words: list[str] = []
        tokens = iter([*line, ";"])
        for token in tokens:
            if not token or token.strip("();<>|&"):
                words.append(token)
            elif "(" not in token and (">" in token or "<" in token):
                next(tokens)
                if words and words[-1] in ("1", "2"):
                    words.pop()
            else:
                if words:
                    yield words, token
                words = []


def _logical_lines(text: str) -> Iterator[list[str]]:
    """Yields the tokens of lines; a quotation may span several. Raises ValueError if one does not end."""
    begun = ""
    for line in [*text.replace("\\\n", " ").splitlines(), ""]:
        begun += line
        try:
            yield _tokens(begun)
        except ValueError:
            begun += "\n"
            continue
        begun = ""
    if begun:
        _tokens(begun)


def _tokens(line: str) -> list[str]:
    """Splits a line as the shell does, without its comment. Raises ValueError if a quotation does not end."""
    comment = COMMENT.match(line)
    lexer = shlex.shlex(line if comment is None else comment[1], posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    return list(lexer)


def _program(words: list[str], functions: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Splits words into what starts the program, and a program that is looked at; that is empty for others."""
    start = 0
    while start < len(words) and (words[start] in KEYWORDS or re.match(r"\w+=", words[start])):
        start += 1
    is_run = start < len(words) and (words[start] in RUNNERS or words[start] in functions)
    places = range(start, len(words)) if is_run else [start]
    for place in places:
        program = words[place:]
        name = program[0].rpartition("/")[2] if program else ""
        if name.startswith("python") and program[1:3] == ["-m", "rlhf"]:
            return words[:place], program[2:]
        if name in ("rlhf", "ray", "bash", "sh"):
            return words[:place], [name, *program[1:]]
    return words, []


def _problems(words: list[str], checkout: Checkout) -> list[str]:
    if words[:1] == ["rlhf"]:
        return _parse_rlhf(words[1:], checkout)[0]
    return _ray_problems(words[1:], checkout) if words[:1] == ["ray"] else []


def _parse_rlhf(arguments: list[str], checkout: Checkout) -> tuple[list[str], Run | None]:
    """Returns the problems of a command, its options, its run file and the keys in --set; or the run."""
    if arguments == ["--help"]:
        return [], None
    problems, values = _parse(checkout.rlhf, arguments, "rlhf")
    if problems or not values:
        return problems, None
    given = values.get("config")
    file = None if given is None else checkout.root / str(given).removeprefix(IMAGE_FOLDER)
    if file is not None and file.name == UNKNOWN:
        return [], None
    if file is not None and not file.is_file():
        return [f"rlhf {arguments[0]}: --config {given} does not exist"], None
    try:
        config = load_config(file, tuple(values.get("overrides") or ()))
    except UserError as error:
        return [f"rlhf {arguments[0]}: {line}" for line in str(error).splitlines()], None
    return [], Run(name=arguments[0], file=str(given or "the defaults"), config=config, options=values)


def _ray_problems(arguments: list[str], checkout: Checkout) -> list[str]:
    """Returns the problems of a Ray command and its options, and of the command that it starts."""
    own, entrypoint = _halves(arguments)
    problems, values = _parse_ray([*own, "--", *entrypoint] if entrypoint else own)
    if own[:1] in (["start"], ["symmetric-run"]) and not problems:
        problems, values = _parse_ray(_start_arguments(own))
        problems += _amount_problems(values.get("resources", "{}"))
    problems += [
        f"ray {' '.join(own[:2])}: {values[name]} does not exist"
        for name in ("cluster_config_file", "runtime_env", "working_dir")
        if values.get(name) not in (None, UNKNOWN) and not (checkout.root / values[name]).exists()
    ]
    return problems + (_problems(_program(entrypoint)[1], checkout) if entrypoint else [])


def parse_ray_start(words: list[str]) -> dict[str, Any]:
    """Returns the options of `ray start`, `ray symmetric-run`'s too; none if only the shell knows them."""
    return _parse_ray(_start_arguments(_halves(words[1:])[0]))[1]


def _halves(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits a Ray command's arguments into its own, and the command that it starts."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def _start_arguments(own: list[str]) -> list[str]:
    """Returns the arguments of `ray start`; `ray symmetric-run` hands those to it that it does not know itself."""
    if own[0] == "start":
        return own
    rest = _parse_ray([*own, "--", "true"])[1].get("ray_args_and_entrypoint", ())
    return ["start", *[word for word in rest if word != "true"]]


def _amount_problems(text: str) -> list[str]:
    if text == UNKNOWN:
        return []
    try:
        amounts = json.loads(text)
    except ValueError as error:
        return [f"ray start --resources: {text} is not JSON ({error})"]
    if not isinstance(amounts, dict) or not all(type(amount) in (int, float) for amount in amounts.values()):
        return [f"ray start --resources: {text} must give each name a number"]
    return []


def _parse_ray(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    from ray.scripts.scripts import cli

    return _parse(cli, arguments, "ray")


def _parse(command: Any, arguments: list[str], name: str) -> tuple[list[str], dict[str, Any]]:
    """Returns problems, and the options of the innermost command; `command` is click's, or typer's copy of it.

    There are no options if an unknown word takes the place of some, as in `rlhf align $OPTIONS`.
    """
    while hasattr(command, "commands"):
        if not arguments or arguments[0] not in command.commands:
            known = ", ".join(sorted(command.commands))
            return [f"{name}: no command {arguments[0] if arguments else ''!r}; there are {known}"], {}
        command, name, arguments = command.commands[arguments[0]], f"{name} {arguments[0]}", arguments[1:]
    try:
        return [], command.make_context(name, list(arguments)).params
    except _usage_errors() as error:
        message = error.format_message()
        is_open = UNKNOWN in message or (UNKNOWN in arguments and message.startswith("Missing"))
        return ([] if is_open else [f"{name}: {message}"]), {}


def _usage_errors() -> tuple[Any, ...]:
    """Returns the classes that an unknown option raises: click's for Ray, that of typer's copy of click for `rlhf`."""
    import click
    import typer

    return click.UsageError, typer.BadParameter.__base__
