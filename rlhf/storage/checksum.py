"""Checksums of weights and folders; imports no torch, since processes that only pass weights on do not either."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from xxhash import xxh3_128_hexdigest

if TYPE_CHECKING:
    import torch

Tensor = TypeVar("Tensor")
HASHING_THREADS = 4
"""Threads of `quick_checksum`: more do not read memory faster."""


def checksum(state: "Mapping[str, torch.Tensor] | Mapping[str, np.ndarray]") -> str:
    """Returns the SHA-256 of names and bytes of CPU tensors without gradient, or of equal NumPy arrays."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()


def quick_checksum(tensors: Mapping[str, Tensor], as_array: Callable[[Tensor], np.ndarray]) -> str:
    """Returns the XXH3 (128 bits) of names and bytes: much faster than `checksum`, against accidents and not forgery.

    `as_array` gives a tensor's bytes; few are there at once.
    """

    def digest(name: str) -> str:
        return f"{name}:{xxh3_128_hexdigest(as_array(tensors[name]).data)};"

    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        return xxh3_128_hexdigest("".join(threads.map(digest, sorted(tensors))).encode())


def file_checksum(path: Path) -> str:
    """Returns the SHA-256 of a local file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_checksum(folder: Path) -> str:
    """Returns the SHA-256 of names and bytes of the files in a local folder, without its subfolders."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name}:{file_checksum(path)};".encode())
    return digest.hexdigest()
