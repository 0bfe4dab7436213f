"""Files of tensors. Those of `torch.save` are pickles: read as tensors and plain values, so that none runs code."""

import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rlhf.errors import UserError

if TYPE_CHECKING:
    import torch

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Variables by which PyTorch overrides `weights_only` of every `torch.load`; both at once are an error."""

DAMAGE_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile, SafetensorError),
)
"""Exceptions that reading a damaged or foreign file raises."""


@contextmanager
def tensors_only(allowed: Sequence[Any] = ()) -> Iterator[None]:
    """Lets every `torch.load` of this process in the block build tensors, plain values and the types `allowed` alone.

    It otherwise raises UnpicklingError, whatever `weights_only` a library passes.
    """
    import torch  # Two seconds, which readers of a configuration need not wait for.

    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(list(allowed)):
            yield
    finally:
        os.environ.pop(FORCE)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_tensors(path: Path, remedy: str, allowed: Sequence[Any] = ()) -> Any:
    """Loads a local file of safetensors or of `torch.save`, of any age; mapped into memory unless it is of old PyTorch.

    Raises UserError if it is damaged or holds more than tensors, plain values and the types `allowed`.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load compares no checksums.
            if damaged is not None:
                raise UserError(f"{path}: damaged ({damaged} has a wrong checksum); {remedy}")
        with tensors_only(allowed):
            return torch.load(path, map_location="cpu", mmap=is_zip)
    except DAMAGE_ERRORS as error:
        reason = str(error).replace("\n", " ").rpartition("WeightsUnpickler error: ")[2].strip()[:200]
        raise UserError(
            f"{path}: holds more than tensors, or is damaged ({reason}); nothing in it ran; {remedy}"
        ) from error


def read_state_dict(path: Path, remedy: str) -> "dict[str, torch.Tensor]":
    """Loads tensors by name as `read_tensors` does. Raises UserError also if the file holds anything else."""
    import torch

    record = read_tensors(path, remedy)
    is_whole = isinstance(record, dict) and all(isinstance(value, torch.Tensor) for value in record.values())
    if not is_whole or not all(isinstance(name, str) for name in record):
        raise UserError(f"{path}: holds no state dict, that is, tensors by name; {remedy}")
    return record
