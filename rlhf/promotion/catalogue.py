"""Which policy answers under which name: the file that `rlhf promote` writes and a running service reads again."""

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, check_schema, read_json
from rlhf.storage.url_path import UrlPath, as_path

# rlhf.diffusion.policy takes two seconds to import, which a rollback need not wait for.

SCHEMA_VERSION = 1
BASE_VERSION = "0"
"""Version of a model without a policy."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
REMEDY = "write it with `rlhf promote`; a damaged one must be restored or removed first"
Place = Annotated[Path, BeforeValidator(as_path), PlainSerializer(str)]
"""A folder, local or at a URL."""


class ServedPolicy(BaseModel):
    """Weights that can answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folder: Place | None = None
    """Policy folder; None is the base model itself."""
    version: str = BASE_VERSION
    """Generation and the head of the weights' checksum, such as `30-9f86d081`: equal only for equal weights."""

    def __str__(self) -> str:
        return self.version if self.folder is not None else f"{self.version} (the base model)"


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

    def on_trial(self, policy: ServedPolicy, share: float) -> "ServedName":
        """With `policy` as the canary, in the place of another that may have been on trial."""
        return self.model_copy(update={"canary": policy, "canary_share": share})

    def succeeded_by(self, policy: ServedPolicy) -> "ServedName":
        """With `policy` as the current one; the former is `previous`, and nothing is on trial."""
        return ServedName(base=self.base, current=policy, previous=self.current)

    def rolled_back(self) -> "ServedName":
        """Without the canary, else with `previous` as the current one; ValueError where there is neither.

        What is rolled back is not kept as `previous`: a second rollback must not bring it back.
        """
        if self.canary is not None:
            return self.model_copy(update={"canary": None, "canary_share": 0.0})
        if self.previous is None:
            raise ValueError("no canary and no previous policy")
        return ServedName(base=self.base, current=self.previous)


class Catalogue(BaseModel):
    """All names of a service."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    updated: float = Field(default_factory=time.time)
    """When it was written, seconds since 1970."""
    models: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ServedName] = {}
    """By name."""

    def with_name(self, name: str, served: ServedName) -> "Catalogue":
        """With one name put, or put anew."""
        return self.model_copy(update={"models": self.models | {name: served}})


def describe_policy(folder: Path) -> ServedPolicy:
    """A policy folder as the catalogue names it; UserError where it is incomplete."""
    from rlhf.diffusion.policy_folders import read_manifest

    manifest = read_manifest(folder)
    return ServedPolicy(folder=folder, version=f"{manifest['policy_version']}-{manifest['checksum'][:8]}")


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue in a file; UserError where it is damaged or of a newer schema."""
    record: Any = read_json(path, REMEDY)
    check_schema(record.get("schema_version") if isinstance(record, dict) else None, SCHEMA_VERSION, path)
    try:
        return Catalogue.model_validate(record)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {problems}; {REMEDY}") from error


def write_catalogue(catalogue: Catalogue, path: Path) -> None:
    """Whole or not at all; a service that reads the file takes the new names up within seconds."""
    atomic_write_json(path, catalogue.model_copy(update={"updated": time.time()}).model_dump(mode="json"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block no other process changes the catalogue: what was read is what the change is made to.

    The lock is a file beside the catalogue (`flock`, which NFS carries between machines), and goes with the process
    that holds it, kill -9 included. At a URL nothing can be locked: a file is still whole, but of two changes within
    the same moment one is lost, so let one machine promote there. Raises UserError where the folder cannot be written.
    """
    if isinstance(path, UrlPath):
        yield
        return
    lock = path.parent / f".{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be locked ({error.strerror}); choose another folder for the catalogue"
        ) from error
    with file:
        yield


def read_or_new(path: Path) -> Catalogue:
    """The catalogue in a file, or one without names where there is no file yet."""
    return read_catalogue(path) if path.exists() else Catalogue()


def roll_back(path: Path, name: str) -> tuple[ServedName, ServedName]:
    """Drop the canary of a name, else bring its previous policy back; the name before and after.

    Reads no weights. Raises UserError where there is no such name, or nothing to go back to.
    """
    path = path.resolve()
    read_catalogue(path)  # Before a lock is left beside a file that is not there.
    with locked(path):
        catalogue = read_catalogue(path)
        if name not in catalogue.models:
            raise UserError(f"{path}: no name {name!r}; it holds {', '.join(sorted(catalogue.models)) or 'none'}")
        before = catalogue.models[name]
        try:
            after = before.rolled_back()
        except ValueError as error:
            raise UserError(
                f"{path}: {name} has {error} to go back to; it answers with {before.current}: promote another"
            ) from error
        write_catalogue(catalogue.with_name(name, after), path)
    return before, after


def merge(catalogues: Iterable[Catalogue]) -> Catalogue:
    """All names of several catalogues; of equal names the last one's."""
    return Catalogue(models={name: model for c in catalogues for name, model in c.models.items()})
