"""Atomic writes: a file or folder is whole, or it does not exist."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlhf.errors import UserError
from rlhf.storage.url_path import UrlPath, explained

DISK_SIGNS = ("No space left", "StorageFull", "Disk quota exceeded", "PytorchStreamWriter failed", "unexpected pos")
"""Texts of a full disk in errors of safetensors and torch.save that are no OSErrors."""


SPARE_BYTES = 2**20
"""Number of bytes to leave free, for the small files that follow a large one."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns every error of the block that prevents writing `path` into a UserError with that path."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in DISK_SIGNS):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        place = getattr(error, "filename", None)
        where = f", at {place}" if place and str(path) not in str(place) else ""
        raise UserError(f"{path}: cannot be written ({reason}{where}); free space or choose another --out") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary file to fill, and replaces `path` by it at the end of the block, whole or not at all.

    The file of a local path lies beside it, is flushed to disk and renamed; the file of a URL is uploaded. If the
    block raises, a previous file stays unchanged. Raises UserError if the folder cannot be written; the block must
    convert OSErrors with another meaning itself.
    """
    if isinstance(path, UrlPath):
        with writing(path), tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            path.put(temporary)
        return
    with writing(path):
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


@contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """Gives a local folder to fill; its file `last` appears last and proves that the folder is whole.

    A local path is used itself, after its old `last` is removed; a URL gets the files at the end of the block,
    `last` after all others. Raises UserError if they cannot be written.
    """
    with writing(folder):
        (folder / last).unlink(missing_ok=True)
        if not isinstance(folder, UrlPath):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            # safetensors lets nobody but the owner read its files; those who serve a policy may be others.
            for path in folder.rglob("*"):
                path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
            return
        with tempfile.TemporaryDirectory(prefix="rlhf-") as name:
            local = Path(name)
            yield local
            files = [path for path in local.rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path == local / last):
                (folder / path.relative_to(local)).put(path)


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, then puts it at `path`, a local path or a URL.

    Raises UserError if the folder cannot be written; a previous file then stays unchanged.
    """
    with atomic_path(path) as temporary:
        write(temporary)


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_text(path: Path, text: str) -> None:
    """Appends to a file and flushes it to disk; a file at a URL cannot be appended to, so it is stored anew."""
    if isinstance(path, UrlPath):
        atomic_write_text(path, (path.read_text() if path.is_file() else "") + text)
        return
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def atomic_write_json(path: Path, record: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    atomic_write_text(path, json.dumps(finite(record), indent=2, default=str) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """Loads the record of a JSON file; raises UserError with the remedy if it is unreadable or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable, or damaged ({error}); {remedy}") from error


def read_json_lines(path: Path, needed: Mapping[str, type], remedy: str) -> list[dict[str, Any]]:
    """Returns the records of a file with one JSON object per line; none if there is no file.

    A last line without its end was cut off by a crash, or is being written, and does not count. Raises UserError with
    the line and the remedy for every other damage, or if a line lacks one of the `needed` keys or its type.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: damaged ({error}); {remedy}") from error
        known = record if isinstance(record, dict) else {}
        wrong = [key for key, kind in needed.items() if type(known.get(key)) is not kind]
        if wrong:
            raise UserError(f"{path}, line {number}: lacks a valid {', '.join(wrong)}; {remedy}")
        records.append(record)
    return records


def check_schema(found: Any, known: int, path: Path) -> None:
    """Raises UserError if `path` has a newer format than this version knows; no number means the first format."""
    if isinstance(found, int) and found > known:
        raise UserError(
            f"{path}: has schema {found}, but this version reads up to {known}; install a newer prefpaint-ray"
        )


def finite(record: Any) -> Any:
    """Replaces NaN and infinity by None, since JSON has neither."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def remove_folder(folder: Path) -> None:
    """Deletes a folder and its content."""
    with writing(folder), explained(folder):
        if isinstance(folder, UrlPath):
            folder.filesystem.delete_dir(folder.key)
        else:
            shutil.rmtree(folder)


def require_room(folder: Path, arriving: Path) -> None:
    """Raises UserError if the files in `arriving` do not fit onto the disk of `folder`; URLs are not checked."""
    if isinstance(folder, UrlPath):
        return
    size = sum(path.stat().st_size for path in arriving.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if size + SPARE_BYTES > free:
        raise UserError(
            f"{folder}: no room for {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; what was finished before is "
            "whole: free space, or lower align.keep_last or align.keep_policies, then go on with --resume"
        )


def atomic_torch_save(record: Any, path: Path) -> None:
    """Saves by `torch.save`, whole or not at all."""
    import torch  # Two seconds, which readers of a configuration need not wait for.

    atomic_write(path, lambda temporary: torch.save(record, temporary))
