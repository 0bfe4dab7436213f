"""Writing so that a file or folder is whole or not there at all."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlhf.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to be filled; at the block's end it is flushed to disk and renamed to `path`.

    Where the block raises, a previous file stays as it was. Raises UserError where the folder cannot be
    written; the block itself must turn its OSErrors that mean something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it to `path`.

    Raises UserError where the folder cannot be written; a previous file then stays as it was.
    """
    with atomic_path(path) as temporary:
        write(temporary)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def atomic_write_json(path: Path, record: Any) -> None:
    """Write a JSON file, whole or not at all."""
    atomic_write_text(path, json.dumps(finite(record), indent=2, default=str) + "\n")


def finite(record: Any) -> Any:
    """NaN and infinity as null: JSON has neither."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def atomic_torch_save(record: Any, path: Path) -> None:
    """`torch.save`, whole or not at all."""
    atomic_write(path, lambda temporary: torch.save(record, temporary))
