"""The records that travel between Ray processes."""

import subprocess
import sys

import torch

from rlhf.storage.checksum import checksum


def test_whoever_only_passes_messages_on_imports_no_torch() -> None:
    code = "import sys, actors.messages; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_checksum_is_of_names_and_bytes_whether_of_tensors_or_arrays() -> None:
    state = {"b": torch.randn(3, 2), "a": torch.randn(4)}
    assert checksum(state) == checksum({name: tensor.numpy() for name, tensor in reversed(state.items())})
    assert checksum(state) != checksum(state | {"a": state["a"].nextafter(torch.tensor(9.0))})
    assert checksum(state) != checksum({"b": state["b"], "c": state["a"]})
