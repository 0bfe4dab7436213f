"""A folder that one command at a time writes to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf.errors import UserError
from rlhf.storage.url_path import UrlPath

LOCK = ".lock"


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a folder during the `with`; makes it, and removes it if nothing came into it.

    The lock belongs to the process and ends with it, however it ends (flock, also over NFS; where a file system has
    none, a file with the process's number). A URL is not locked: object stores have no locks.
    Raises UserError if another process holds the folder, or if it cannot be written.
    """
    if isinstance(folder, UrlPath):
        yield
        return
    is_new, path = not folder.exists(), folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, blocking=False).acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another command is writing to it (it holds {path}); wait for its end, or choose another --out"
        ) from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    with held:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # Checksums of a folder are of all its files.
            if is_new:
                with suppress(OSError):  # It is not empty.
                    folder.rmdir()
