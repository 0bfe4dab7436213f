"""The store of images that are answered as URLs."""

import re
import secrets
import time
from pathlib import Path

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write, writing
from rlhf.storage.url_path import UrlPath

KEPT_S = 3600.0
"""Seconds for which an image can be fetched, as in OpenAI's interface."""
NAME = re.compile(r"[A-Za-z0-9_-]{32}\.(png|jpeg|webp)")
"""Pattern of names; they are random and too long to guess."""


class ImageStore:
    """A folder, local or at a URL. At a URL the bucket's lifecycle rules must remove old images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._swept = 0.0
        if not isinstance(folder, UrlPath):
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes, kind: str) -> str:
        """Stores an image, whole or not at all, and returns its name. Raises UserError if it cannot be written."""
        self._sweep()
        name = f"{secrets.token_urlsafe(24)}.{kind}"
        atomic_write(self._folder / name, lambda path: path.write_bytes(data))
        return name

    def get(self, name: str) -> bytes | None:
        """Returns an image, or None if there is none of that name or it is too old."""
        path = self._folder / name
        if NAME.fullmatch(name) is None or not path.is_file() or self._is_old(path):
            return None
        try:
            return path.read_bytes()
        except (OSError, UserError):
            return None

    def _is_old(self, path: Path) -> bool:
        return not isinstance(path, UrlPath) and time.time() - path.stat().st_mtime > KEPT_S

    def _sweep(self) -> None:
        """Removes images that are too old, at most once a minute."""
        if isinstance(self._folder, UrlPath) or time.monotonic() - self._swept < 60:
            return
        self._swept = time.monotonic()
        with writing(self._folder):
            for path in self._folder.iterdir():
                if NAME.fullmatch(path.name) and self._is_old(path):
                    path.unlink(missing_ok=True)
