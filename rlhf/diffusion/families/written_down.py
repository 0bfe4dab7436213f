"""Configurations of published models, written down in `written/`: folders of pipelines without weights."""

import json
from dataclasses import dataclass
from pathlib import Path

WRITTEN = Path(__file__).parent / "written"


@dataclass(frozen=True, kw_only=True)
class WrittenModel:
    """A published model."""

    hub: tuple[str, ...]
    """Its names on the hub."""
    parameters: int | None
    """Published number of parameters of its network; None if none was found that counts the network alone."""
    source: str
    """Where that number is from."""
    licence: str
    """Licence of its weights."""


def read_written() -> dict[str, WrittenModel]:
    """The models by their short names."""
    table = json.loads((WRITTEN / "models.json").read_text())
    return {name: WrittenModel(**row | {"hub": tuple(row["hub"])}) for name, row in table.items()}


def find_written(name: str) -> Path | None:
    """The folder of a model that is written down, by its short name or a name on the hub; None for others."""
    for short, model in read_written().items():
        if name in (short, *model.hub):
            return WRITTEN / short
    return None
