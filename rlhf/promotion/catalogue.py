"""Catalogue of the policies that answer under names. `rlhf promote` writes the file, and running services reread it."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, check_schema, read_json
from rlhf.storage.url_path import UrlPath, as_path

SCHEMA_VERSION = 1
BASE_VERSION = "0"
"""Version of a base model without a policy."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
REMEDY = "write it with `rlhf promote`; a damaged one must be restored or removed first"
Place = Annotated[Path, BeforeValidator(as_path), PlainSerializer(str)]
"""A folder, local or at a URL."""


class ServedPolicy(BaseModel):
    """The weights of one version of a policy."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    folder: Place | None = None
    """Policy folder; None is the base model itself."""
    version: str = BASE_VERSION
    """Generation and head of the weights' checksum, such as `30-9f86d081`; equal only for equal weights."""

    def __str__(self) -> str:
        return self.version if self.folder is not None else f"{self.version} (the base model)"


class ServedName(BaseModel):
    """The policies under one name."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    base: str
    """`tiny`, a pipeline folder, or a hub name."""
    current: ServedPolicy = ServedPolicy()
    """The policy that answers all requests except the canary's."""
    canary: ServedPolicy | None = None
    """A newer policy on trial."""
    canary_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that the canary answers."""
    previous: ServedPolicy | None = None
    """The policy that a rollback brings back."""

    def on_trial(self, policy: ServedPolicy, share: float) -> "ServedName":
        """Returns the name with `policy` as its canary, in place of any other canary."""
        return self.model_copy(update={"canary": policy, "canary_share": share})

    def succeeded_by(self, policy: ServedPolicy) -> "ServedName":
        """Returns the name with `policy` as current, the former one as previous, and no canary."""
        return ServedName(base=self.base, current=policy, previous=self.current)

    def rolled_back(self) -> "ServedName":
        """Returns the name without its canary, or else with its previous policy as the current one.

        The policy that is rolled back is not kept as `previous`, so that a second rollback does not bring it back.
        Raises ValueError if there is neither a canary nor a previous policy.
        """
        if self.canary is not None:
            return self.model_copy(update={"canary": None, "canary_share": 0.0})
        if self.previous is None:
            raise ValueError("no canary and no previous policy")
        return ServedName(base=self.base, current=self.previous)


class Catalogue(BaseModel):
    """The names of a service."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    updated: float = Field(default_factory=time.time)
    """Time of writing, in seconds since 1970."""
    models: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ServedName] = {}
    """The policies of each name."""

    def with_name(self, name: str, served: ServedName) -> "Catalogue":
        """Returns the catalogue with one name added or replaced."""
        return self.model_copy(update={"models": self.models | {name: served}})


def describe_policy(folder: Path) -> ServedPolicy:
    """Returns the catalogue's entry for a policy folder. Raises UserError if the folder is incomplete."""
    from rlhf.diffusion.policy_manifest import read_manifest

    manifest = read_manifest(folder)
    return ServedPolicy(folder=folder, version=f"{manifest['policy_version']}-{manifest['checksum'][:8]}")


def read_catalogue(path: Path) -> Catalogue:
    """Reads a catalogue. Raises UserError if the file is damaged or of a newer schema."""
    record: Any = read_json(path, REMEDY)
    check_schema(record.get("schema_version") if isinstance(record, dict) else None, SCHEMA_VERSION, path)
    try:
        return Catalogue.model_validate(record)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {problems}; {REMEDY}") from error


def write_catalogue(catalogue: Catalogue, path: Path) -> None:
    """Writes a catalogue, whole or not at all; running services adopt the new names within seconds."""
    atomic_write_json(path, catalogue.model_copy(update={"updated": time.time()}).model_dump(mode="json"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from changing the catalogue within the block.

    The lock is a file beside the catalogue (`flock`, which NFS carries between machines). The kernel releases it when
    the process ends, also by kill -9. A catalogue at a URL cannot be locked: it stays whole, but two changes at the
    same moment may lose one, so only one machine should promote there. Raises UserError if the folder is not writable.
    """
    if isinstance(path, UrlPath):
        yield
        return
    lock = path.parent / f".{path.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire()
    except OSError as error:
        raise UserError(
            f"{lock}: cannot be locked ({error.strerror}); choose another folder for the catalogue"
        ) from error
    with held:
        yield


def read_or_new(path: Path) -> Catalogue:
    """Reads a catalogue, or returns one without names if there is no file yet."""
    return read_catalogue(path) if path.exists() else Catalogue()


def roll_back(path: Path, name: str) -> tuple[ServedName, ServedName]:
    """Drops the canary of a name, or else brings its previous policy back. Returns the name before and after.

    Reads no weights. Raises UserError if there is no such name, or nothing to go back to.
    """
    path = path.resolve()
    read_catalogue(path)  # Fails before a lock file is created beside a catalogue that does not exist.
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
    """Returns the names of several catalogues; a later catalogue wins."""
    return Catalogue(models={name: model for c in catalogues for name, model in c.models.items()})
