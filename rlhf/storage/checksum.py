"""The proof that two processes hold the same weights; imports no torch, as whoever only passes weights on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def checksum(state: "Mapping[str, torch.Tensor] | Mapping[str, np.ndarray]") -> str:
    """SHA-256 over names and bytes of tensors on the CPU, without gradient; the same for NumPy's arrays of them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()


def folder_checksum(folder: Path) -> str:
    """SHA-256 over names and bytes of the files in a folder of this machine, folders in it left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()
