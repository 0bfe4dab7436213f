"""Checksums of weights and folders; imports no torch, since processes that only pass weights on do not either."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def checksum(state: "Mapping[str, torch.Tensor] | Mapping[str, np.ndarray]") -> str:
    """Returns the SHA-256 of names and bytes of CPU tensors without gradient, or of equal NumPy arrays."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()


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
