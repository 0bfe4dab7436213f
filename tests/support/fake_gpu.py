"""A fake GPU on the CPU: it follows which tensors lie in host memory, and refuses what a GPU or NCCL would refuse."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from small_learner import start
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig

FACTORIES = {
    *(torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.linspace),
    *(torch.rand, torch.randn, torch.randint, torch.eye, torch.from_numpy),
}
MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu}
MAY_MIX = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__}


def mark_host(tensor: torch.Tensor) -> torch.Tensor:
    """Says that a tensor lies in host memory; without a mark it counts as the GPU's."""
    tensor.lies_on_host = True  # type: ignore[attr-defined]
    return tensor


def is_host(tensor: object) -> bool:
    return getattr(tensor, "lies_on_host", False)


def holds_gpu_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory counts as the GPU's; a GPU's memory can always be given back, a file's cannot."""
    storage = tensor.untyped_storage()
    return not is_host(tensor) and tensor.device.type != "meta" and storage.resizable() and storage.nbytes() > 0


def _names_device(leaf: object) -> bool:
    return isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf.partition(":")[0] in ("cpu", "cuda"))


class FakeGpu(TorchFunctionMode):
    """Within it, tensors made without a device lie on the host, and mix with the GPU's only where they are scalars.

    A tensor whose memory counts as the GPU's says that it lies there.

    A device that code names counts as the GPU, since the network lies on the CPU here.
    """

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("cuda") if holds_gpu_memory(args[0]) else func(*args)
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        devices = [leaf for leaf in leaves if _names_device(leaf)]
        args, kwargs = tree_map(lambda leaf: "cpu" if _names_device(leaf) else leaf, (args, kwargs or {}))
        wide = [is_host(t) for t in tensors if t.dim() > 0]
        if func in FACTORIES or func in MOVES:
            default = func in FACTORIES or func is torch.Tensor.cpu or is_host(tensors[-1])
            to_host = default and not devices
            result = func(*args, **kwargs)
            result = result.clone() if tensors and result is tensors[0] and to_host != is_host(result) else result
        else:
            assert len(set(wide)) < 2 or func in MAY_MIX, f"{func.__name__} mixes tensors of the host and of the GPU"
            assert func is not torch.Tensor.numpy or is_host(args[0]), "numpy() of a tensor on the GPU"
            to_host = all(wide or [is_host(t) for t in tensors] or [False])
            result = func(*args, **kwargs)
        for leaf in tree_flatten(result)[0] if to_host else ():
            if isinstance(leaf, torch.Tensor):
                mark_host(leaf)
        return result


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within the block there is a GPU, and the process group serves its tensors alone, as NCCL does."""
    all_reduce = dist.all_reduce

    def serve(tensor: torch.Tensor, *args: object, **kwargs: Any) -> object:
        if is_host(tensor):
            raise RuntimeError("No backend type associated with device type cpu")
        return all_reduce(tensor, *args, **kwargs)

    config = mock.patch.object(dist, "get_backend_config", return_value="cuda:nccl")
    with config, mock.patch.object(dist, "all_reduce", serve), FakeGpu():
        yield


def start_on_fake_gpu(pipeline: Path, config: AlignConfig) -> Learner:
    """A learner whose network counts as the GPU's, and whose averaged weights lie on the host."""
    learner = start(pipeline, config)
    for tensor in (*learner.averaged.values(), *(learner._old or {}).values()):
        mark_host(tensor)
    return learner


def on_host(batch: TrainingBatch) -> TrainingBatch:
    """A batch as it comes out of the object store."""
    for record in (batch, batch.trajectories):
        for field in fields(record):
            value = getattr(record, field.name)
            if isinstance(value, torch.Tensor):
                mark_host(value)
    return replace(batch)
