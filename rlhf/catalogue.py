"""Which policy answers under which name: the file that `rlhf promote` writes and a running service reads again."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from rlhf.errors import UserError
from rlhf.policy import read_manifest
from rlhf.storage import atomic_write_json, check_schema, read_json
from rlhf.url_path import as_path

SCHEMA_VERSION = 1
BASE_VERSION = "0"
"""Version of a model without a policy."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Place = Annotated[Path, BeforeValidator(as_path), PlainSerializer(str)]
"""A folder, local or at a URL."""


class ServedPolicy(BaseModel):
    """Weights that can answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folder: Place | None = None
    """Policy folder; None is the base model itself."""
    version: str = BASE_VERSION
    """Generation and the head of the weights' checksum, such as `30-9f86d081`: equal only for equal weights."""


class ServedName(BaseModel):
    """What answers under one name."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base: str
    """`tiny`, a pipeline folder, or a hub name."""
    current: ServedPolicy = ServedPolicy()
    """Answers whatever the canary does not."""
    canary: ServedPolicy | None = None
    """A newer policy on trial."""
    canary_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that the canary answers."""
    previous: ServedPolicy | None = None
    """What a rollback brings back."""

    def choose(self, draw: float) -> ServedPolicy:
        """The policy for a request whose `draw` is uniform in [0, 1)."""
        return self.canary if self.canary is not None and draw < self.canary_share else self.current

    def find(self, version: str) -> ServedPolicy | None:
        """The policy of that version, or of that generation where only its number is given."""
        policies = [p for p in (self.current, self.canary, self.previous) if p is not None]
        exact = [p for p in policies if p.version == version]
        return next(iter(exact + [p for p in policies if p.version.partition("-")[0] == version]), None)


class Catalogue(BaseModel):
    """All names of a service."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    updated: float = Field(default_factory=time.time)
    """When it was written, seconds since 1970."""
    models: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ServedName] = {}
    """By name."""


def describe_policy(folder: Path) -> ServedPolicy:
    """A policy folder as the catalogue names it; UserError where it is incomplete."""
    manifest = read_manifest(folder)
    return ServedPolicy(folder=folder, version=f"{manifest['policy_version']}-{manifest['checksum'][:8]}")


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue in a file; UserError where it is damaged or of a newer schema."""
    record: Any = read_json(path, "write it with `rlhf promote`")
    check_schema(record.get("schema_version") if isinstance(record, dict) else None, SCHEMA_VERSION, path)
    try:
        return Catalogue.model_validate(record)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {problems}; write it with `rlhf promote`") from error


def write_catalogue(catalogue: Catalogue, path: Path) -> None:
    """Whole or not at all; a service that reads the file takes the new names up within seconds."""
    atomic_write_json(path, catalogue.model_copy(update={"updated": time.time()}).model_dump(mode="json"))


def merge(catalogues: Iterable[Catalogue]) -> Catalogue:
    """All names of several catalogues; of equal names the last one's."""
    return Catalogue(models={name: model for c in catalogues for name, model in c.models.items()})
