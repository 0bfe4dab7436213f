"""Traces of what a process computes, which PyTorch's and Chrome's viewers open."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlhf.storage.atomic_files import atomic_write_text


@contextmanager
def profiled(out: Path, update: int, process: str) -> Iterator[None]:
    """Writes the operators and named ranges of the block into the run folder `out`, which may be a URL.

    `process` is a name such as `sampler-0`.
    """
    from torch.profiler import ProfilerActivity, profile

    is_cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as profiler:
        yield
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        local = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(local))
        atomic_write_text(out / "profile" / f"update-{update:06d}-{process}.pt.trace.json", local.read_text())
