"""Writes docs/configuration.md from the docstrings of the configuration: `python docs/generate_configuration.py`."""

import json
from pathlib import Path
from typing import Any

from rlhf.config.config_types import Section
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import RunConfig

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

<!-- Written by docs/generate_configuration.py; change the docstrings in rlhf/config/ instead. -->

A YAML file (`--config FILE.yaml`) holds the values that differ from the defaults below; `--set align.updates=60`
overrides one of them. Each stage saves the resolved configuration as `config.yaml` in its folder.
"""


def render() -> str:
    """Returns the page: one table for the keys outside sections, and one for each section."""
    sections = {name: field for name, field in RunConfig.model_fields.items() if isinstance(field.default, Section)}
    parts = [HEAD, "\n## Top level\n", *_table(RunConfig, without=set(sections))]
    for name, field in sections.items():
        parts += [f"\n## {name}\n", f"{field.description}\n", *_table(type(field.default))]
    parts += ["\n## Entries of rewards and judges\n", f"{RewardEntry.__doc__}\n", *_table(RewardEntry)]
    return "\n".join(parts) + "\n"


def _table(section: type[Section], without: set[str] = frozenset()) -> list[str]:
    schema = section.model_json_schema(by_alias=False)["properties"]
    rows = ["| key | default | values | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        if name not in without:
            default = (
                "required"
                if field.is_required()
                else f"`{json.dumps(field.get_default(call_default_factory=True), default=list)}`"
            )
            cells = [f"`{name}`", default, _values(schema[name]), " ".join((field.description or "").split())]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _values(schema: dict[str, Any]) -> str:
    """Returns the allowed values in words: the choices, or the type with its limits."""
    if "anyOf" in schema:
        return " or ".join(_values(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "items" in schema:
        return f"list of {_values(schema['items'])}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    words = [f"{word} {schema[key]:g}" for key, word in limits.items() if key in schema]
    kind = {"array": "list", "null": "none", "object": "mapping"}.get(
        schema.get("type", ""), schema.get("type", "entry")
    )
    return " ".join([kind, ", ".join(words)]).strip()


if __name__ == "__main__":
    PAGE.write_text(render())
