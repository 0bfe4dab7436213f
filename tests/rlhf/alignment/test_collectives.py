import ast
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rlhf.alignment.collectives import group_device, mean_over_ranks

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


def test_figures_are_the_weighted_mean_over_the_rows_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = [[1.0, 10.0], [2.0, 20.0]], [[6.0, 60.0]]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    # The other rank's weighted sums, with the sum of its weights: a full micro-batch of weight 3, then fillers alone.
    for sums, expected in (([18.0, 180.0, 3.0], [(1 + 2 + 18) / 5, (10 + 20 + 180) / 5]), ([0.0] * 3, [1.5, 15.0])):
        added = torch.tensor(sums, dtype=torch.float64)
        monkeypatch.setattr("rlhf.alignment.collectives.sum_over_ranks", lambda values, added=added: values + added)
        assert mean_over_ranks(ours, [1.0, 1.0]) == pytest.approx(expected)
    monkeypatch.setattr(
        "rlhf.alignment.collectives.sum_over_ranks", lambda values: values + torch.tensor([3.0, 30.0, 2.0])
    )
    assert mean_over_ranks(theirs, [0.0]) == pytest.approx([1.5, 15.0]), "a rank of fillers adds nothing"


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
