"""Files of `torch.save`, which are pickles: read as tensors and plain values, so that none of them runs code."""

import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Variables by which PyTorch overrides `weights_only` of every `torch.load`; both at once are an error."""


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
    """Loads a local file, mapped into memory. Raises UserError if it is damaged or holds more than tensors."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load compares no checksums.
        if damaged is not None:
            raise UserError(f"{path}: damaged ({damaged} has a wrong checksum); {remedy}")
        with tensors_only(allowed):
            return torch.load(path, map_location="cpu", mmap=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        reason = str(error).replace("\n", " ").rpartition("WeightsUnpickler error: ")[2].strip()[:200]
        raise UserError(
            f"{path}: holds more than tensors, or is damaged ({reason}); nothing in it ran; {remedy}"
        ) from error
