"""One reader of files of tensors, whoever wrote them: every layout is read, and everything else is refused by name."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pickled_commands import Command
from safetensors.torch import save_file

from rlhf.errors import UserError
from rlhf.storage.tensor_files import read_state_dict, read_tensors

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def save_old(state: object, path: Path) -> None:
    """As PyTorch wrote files before version 1.6."""
    torch.save(state, path, _use_new_zipfile_serialization=False)


LAYOUTS = pytest.mark.parametrize(
    ("save", "name"), [(torch.save, "new.pth"), (save_old, "old.pth"), (save_file, "one.safetensors")]
)


@LAYOUTS
def test_tensors_of_every_layout_are_read(save: Callable, name: str, tmp_path: Path) -> None:
    save(STATE, tmp_path / name)
    read = read_state_dict(tmp_path / name, "mend it")
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], tensor) for key, tensor in STATE.items())


@LAYOUTS
def test_a_damaged_file_is_refused_whatever_its_bytes(save: Callable, name: str, tmp_path: Path) -> None:
    save(STATE, tmp_path / name)
    whole, chance = (tmp_path / name).read_bytes(), random.Random(0)
    for length in (0, 7, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{name}: holds more than tensors, or is damaged .*; mend it"):
            read_tensors(tmp_path / name, "mend it")
    for _ in range(60):
        (tmp_path / name).write_bytes(chance.randbytes(8) + whole[8:80] + chance.randbytes(60))
        with pytest.raises(UserError, match=f"{name}: .*mend it"):
            read_tensors(tmp_path / name, "mend it")


@pytest.mark.parametrize("save", [torch.save, save_old])
@pytest.mark.parametrize("record", [[1, 2], {"epoch": 3, "model": STATE}, {1: torch.ones(2)}])
def test_what_is_no_state_dict_is_refused(save: Callable, record: object, tmp_path: Path) -> None:
    save(record, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt: holds no state dict, .*; mend it"):
        read_state_dict(tmp_path / "c.pt", "mend it")


@pytest.mark.parametrize("save", [torch.save, save_old])
def test_nothing_in_a_file_runs(save: Callable, tmp_path: Path) -> None:
    save({"a": Command(f"touch {tmp_path / 'trace'}")}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="nothing in it ran"):
        read_tensors(tmp_path / "c.pt", "mend it")
    assert not (tmp_path / "trace").exists()
