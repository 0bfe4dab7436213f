"""Run configurations from YAML files and `--set`, and back."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rlhf.config.align_config import SETTINGS_OF_SOME
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import RunConfig
from rlhf.errors import UserError
from rlhf.storage.atomic_files import check_schema

PACKAGE = Path(__file__).parents[1]
SCHEMA_VERSION = 1
"""Format version of the configuration that is saved with each stage."""
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""Errors of text that is no YAML: ValueError comes of dates such as 2026-99-99, RecursionError of deep nesting."""


def find_run_file(name: str) -> Path:
    """Returns the path of a run configuration in the package, or in `cluster/runs` of a checkout.

    Raises UserError if neither has it.
    """
    for folder in (PACKAGE / "runs", PACKAGE.parent / "cluster" / "runs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UserError(f"no run configuration {name!r} in this installation; name one with --config")


def load_config(file: Path | None = None, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Loads the defaults, changed by a YAML file and then by `section.key=value` overrides.

    Raises UserError with the key (and the nearest known one) or the value if one is invalid.
    """
    record: dict[str, Any] = {}
    if file is not None:
        record = _read_yaml(file)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--set {override}: write section.key=value")
        node = record
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {override}: {parent} is no section")
        try:
            node[leaf] = yaml.safe_load(value)
        except UNREADABLE as error:
            raise UserError(f"--set {override}: value is not YAML ({error})") from error
    try:
        return RunConfig.model_validate(record)
    except ValidationError as error:
        raise UserError(_explain(error, file)) from error


def find_unused(config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """Returns a sentence for every override of a setting that the chosen algorithm does not use."""
    found = []
    for override in overrides:
        section, _, setting = override.partition("=")[0].partition(".")
        if section == "align" and not config.align.uses(setting):
            used_by = ", ".join(SETTINGS_OF_SOME[setting])
            found.append(
                f"--set {override}: changes nothing, since {config.align.algorithm} does not use it; {used_by} would"
            )
    return found


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        record = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE) as error:
        raise UserError(f"{file}: not a readable YAML file ({error})") from error
    if record is None:
        return {}
    if not isinstance(record, dict):
        raise UserError(f"{file}: must hold sections such as `align:`")
    check_schema(record.pop("schema_version", None), SCHEMA_VERSION, file)
    return record


def _explain(error: ValidationError, file: Path | None) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        if problem["type"] == "extra_forbidden":
            *section, unknown = map(str, problem["loc"])
            near = difflib.get_close_matches(unknown, _keys_at(section), n=1, cutoff=0.0)[0]
            lines.append(f"{key}: unknown key; did you mean {'.'.join([*section, near])}?")
        else:
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(f"{file or 'configuration'}: {line}" for line in lines)


def _keys_at(path: list[str]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        # `rewards` is a tuple of sections; its items are named by numbers.
        section = get_args(section)[0] if part.isdigit() else section.model_fields[part].annotation
    return list(section.model_fields)


def parse_reward(record: dict[str, Any]) -> RewardEntry:
    """Parses one entry of `rewards:`; raises UserError with the key if one is invalid."""
    try:
        return RewardEntry.model_validate(record)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))} {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise UserError(f"reward: {'; '.join(problems).strip()}") from error


def dump_config(config: RunConfig) -> str:
    """Returns the resolved configuration as YAML."""
    return yaml.safe_dump({"schema_version": SCHEMA_VERSION} | config.model_dump(mode="json"), sort_keys=False)
