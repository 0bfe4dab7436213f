import ast
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rlhf.alignment.collectives import group_device

ROOT = Path(__file__).parents[3]
COLLECTIVES = {name for name in dir(dist) if name.startswith(("all_", "broadcast", "gather", "reduce", "scatter"))}
COLLECTIVES |= {"barrier", "monitored_barrier", "send", "recv", "isend", "irecv", "batch_isend_irecv"}


@pytest.mark.parametrize(
    ("served", "device"),
    [("cuda:nccl", "cuda"), ("cpu:gloo,cuda:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu"), ("cpu:gloo", "cpu")],
)
def test_numbers_are_exchanged_on_a_device_that_the_group_serves(
    served: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: served)
    assert group_device() == torch.device(device)


def test_only_one_file_calls_collectives() -> None:
    """A tensor made elsewhere lies on the CPU as soon as somebody forgets, and NCCL refuses it on users' GPUs."""
    found = {}
    for file in [f for folder in ("rlhf", "actors", "serve") for f in (ROOT / folder).rglob("*.py")]:
        tree = ast.parse(file.read_text())
        aliases = {
            a.asname or a.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for a in node.names
            if a.name == "torch.distributed"
        }
        calls = [
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in COLLECTIVES and ast.unparse(node.value) in aliases
        ]
        imported = [
            a.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed")
            for a in node.names
            if a.name in COLLECTIVES
        ]
        if calls or imported:
            found[str(file.relative_to(ROOT))] = calls + imported
    assert list(found) == ["rlhf/alignment/collectives.py"], found
