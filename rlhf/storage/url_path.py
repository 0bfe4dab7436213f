"""Paths of folders at URLs (s3://, gs://, and the schemes of pyarrow and fsspec), used by stages like local paths.

`UrlPath` is a `pathlib.Path` over pyarrow's filesystems, which open S3 and Google's storage without further packages
and which Ray Train accepts. universal_pathlib needs s3fs for S3, and its paths are no `pathlib.Path`. Tables are
streamed row group by row group; `local_copy` fetches the files that a library opens by name.

An object appears at its URL when all of it has arrived, so one file is whole or not there, as after a rename.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PosixPath, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from rlhf.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# pyarrow takes half a second to import, which `--help` need not wait for.

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role; GOOGLE_APPLICATION_CREDENTIALS"
REASONS = (
    (
        ("ACCESS_DENIED", "FORBIDDEN", "INVALID_ACCESS_KEY", "SIGNATURE", "PERMISSION", "CREDENTIALS", "UNAUTH"),
        f"permission denied; check the credentials ({CREDENTIALS}) and what they are allowed there",
    ),
    (("NO_SUCH_BUCKET",), "no such bucket; create it, or check the name"),
    (
        ("NETWORK_CONNECTION", "COULD NOT CONNECT", "RESOLVE HOST", "TIMEOUT", "UNAVAILABLE"),
        "the server does not answer; check the network, and AWS_ENDPOINT_URL or ?endpoint_override= for other servers",
    ),
)
"""Signs in the messages of storage servers, with meaning and remedy."""


class UrlPath(PosixPath):
    """A file or folder at a URL, made by `as_path`; its parts are scheme, host with options, and the rest.

    Every access raises UserError if the server refuses or does not answer, and FileNotFoundError if there is no such
    file. `put` writes whole files only. A library that needs a local file raises TypeError at once.
    """

    __slots__ = ()

    def __str__(self) -> str:
        scheme, place, *rest = self.parts
        host, _, options = place.partition("?")
        return f"{scheme}//{'/'.join([host, *rest])}" + (f"?{unquote(options)}" if options else "")

    def relative_to(self, *other: Any, **_: Any) -> PurePosixPath:  # type: ignore[override]
        """Returns the parts below another URL; raises ValueError if it is not above this one."""
        above = type(self)(*other).parts
        if self.parts[: len(above)] != above:
            raise ValueError(f"{self} is not below {other[0]}")
        return PurePosixPath(*self.parts[len(above) :])

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not a file of this machine; see local_copy")

    @property
    def filesystem(self) -> "FileSystem":
        """The filesystem of pyarrow; it can be pickled, with its options."""
        return _open_filesystem(*self.parts[:2])[0]

    @property
    def key(self) -> str:
        """The path within `filesystem`."""
        return "/".join([_open_filesystem(*self.parts[:2])[1].rstrip("/"), *self.parts[2:]])

    def _info(self) -> "FileInfo":
        with explained(self):
            return self.filesystem.get_file_info([self.key])[0]

    def exists(self, **_: Any) -> bool:
        """Returns whether a file is there, or a folder that holds one."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Returns whether an object of this name is there."""
        return bool(self._info().is_file)

    def is_dir(self, **_: Any) -> bool:
        """Returns whether a folder with content is there."""
        from pyarrow.fs import FileType

        return self._info().type == FileType.Directory

    def glob(self, pattern: str, **_: Any) -> Iterator["UrlPath"]:  # type: ignore[override]
        """Yields the paths below that match, part by part."""
        depth = len(Path(pattern).parts)
        for path in self._below(is_recursive=depth > 1):
            below = path.relative_to(self)
            if len(below.parts) == depth and below.match(pattern):
                yield path

    def iterdir(self) -> Iterator["UrlPath"]:  # type: ignore[override]
        """Yields the paths in the folder."""
        return self.glob("*")

    def _below(self, *, is_recursive: bool) -> Iterator["UrlPath"]:
        from pyarrow.fs import FileSelector

        with explained(self):
            key = self.key
            found = self.filesystem.get_file_info(FileSelector(key, allow_not_found=True, recursive=is_recursive))
        for info in found:
            yield self / info.path.strip("/").removeprefix(key.strip("/")).strip("/")

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:  # type: ignore[override]
        """Opens a seekable pyarrow file; only the parts that are read are fetched."""
        if mode != "rb":
            raise ValueError(f"{self}: opens for reading bytes only, not {mode!r}; write with atomic_path")
        with explained(self):
            return self.filesystem.open_input_file(self.key)

    def read_bytes(self) -> bytes:
        """Reads a whole file."""
        with explained(self), self.open() as file:
            return file.read()

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Reads a whole file as text, by default UTF-8."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def put(self, source: Path) -> None:
        """Stores a local file here; it appears when all of it has arrived."""
        from pyarrow.fs import copy_files

        with explained(self):
            if self.filesystem.type_name not in ("s3", "gcs"):  # Those have no folders; others want them made.
                self.filesystem.create_dir(self.parent.key, recursive=True)
            copy_files(str(source), self.key, destination_filesystem=self.filesystem, use_threads=False)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file."""
        if missing_ok and not self.is_file():
            return
        with explained(self):
            self.filesystem.delete_file(self.key)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Does nothing: a folder exists as soon as it has content."""

    def resolve(self, strict: bool = False) -> "UrlPath":
        """Returns the path itself: a URL is absolute."""
        return self


def as_path(text: str | Path) -> Path:
    """Converts a user's text to a UrlPath if it is a URL, else (NFS and file:// included) to a local path.

    Raises UserError if a URL holds a password or names no place.
    """
    scheme, separator, rest = str(text).partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        return Path(unquote(rest))
    place, _, options = rest.partition("?")
    host, _, path = place.partition("/")
    if "@" in host:
        raise UserError(f"{scheme}://...: keep keys out of URLs, they end up in logs; set {CREDENTIALS}")
    if not host:
        raise UserError(f"{text}: names no place; write {scheme}://BUCKET/FOLDER")
    return UrlPath(f"{scheme}:", f"{host}?{quote(options, safe='')}", path)


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Gives a local path: the path itself, or a copy of a URL that is removed at the end of the block."""
    if not isinstance(path, UrlPath):
        yield path
        return
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    from pyarrow.fs import copy_files

    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        local = Path(folder) / path.name.partition("?")[0]
        if path.is_dir():
            local.mkdir()
        with explained(path):
            copy_files(path.key, str(local), source_filesystem=path.filesystem)
        yield local


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a storage server's refusals within the block into a UserError with the URL and the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or not isinstance(path, UrlPath):
            raise
        for signs, meaning in REASONS:
            if any(sign in str(error).upper() for sign in signs):
                raise UserError(f"{path}: {meaning} ({error})") from error
        raise UserError(f"{path}: the storage failed; try again, or choose another folder ({error})") from error


@cache
def _open_filesystem(scheme: str, place: str) -> tuple["FileSystem", str]:
    """Returns the filesystem of a scheme and a host with its options, and the path of its root."""
    import pickle

    import fsspec
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    host, _, quoted = place.partition("?")
    options = unquote(quoted)
    if scheme in ("gs:", "gcs:") and "retry_limit_seconds" not in options:
        options = "&".join(filter(None, [options, "retry_limit_seconds=15"]))  # By default 15 minutes.
    url = f"{scheme}//{host}"
    try:
        if scheme.rstrip(":") in fsspec.available_protocols() and scheme not in ("s3:", "gs:", "gcs:", "hdfs:"):
            found, root = fsspec.core.url_to_fs(url)
            return PyFileSystem(FSSpecHandler(found)), root
        filesystem, root = FileSystem.from_uri(url + (f"?{options}" if options else ""))
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        known = "local paths, s3://, gs://, hdfs:// and what fsspec opens"
        raise UserError(f"{url}: cannot be opened ({error}); known are {known}") from error
    # Unpickled it tries three times; from a URL it would ask a silent server for a hundred seconds.
    return pickle.loads(pickle.dumps(filesystem)), root
