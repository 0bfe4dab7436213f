"""Sleep and wake: all tensors that an object holds leave the GPU for host memory, and come back equal to the bit."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType, ModuleType

import torch

LEFT_OUT = (type, ModuleType, FrameType, CodeType, str, bytes, int, float)
"""Types that hold no tensors of their own, or lead to the whole program."""


class Sleeper:
    """Sends the tensors of `root` to sleep: of a policy, of rewards, of a learner with DeepSpeed's engine.

    Whole storages move, so each view of one (a parameter, a slice of ZeRO, a flat buffer) sleeps and wakes with it, and
    no tensor is replaced. Host memory, page-locked for a GPU, is kept for the next time. Tensors of the CPU stay where
    they are. While they sleep, nothing may compute with them.
    """

    def __init__(self, root: object) -> None:
        self._root = root
        self._asleep: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []
        """Storages of the GPU, now empty, with their contents."""
        self._kept: dict[int, torch.UntypedStorage] = {}
        """Host memory by the address of the GPU's storage."""

    def sleep(self) -> int:
        """Returns the bytes that left the GPU; 0 if they had left before."""
        if self._asleep:
            return 0
        gc.collect()  # Tensors in circles that nobody reaches any more would stay on the GPU.
        for storage in storages_on_gpu(self._root):
            host = self._kept.get(storage._cdata)
            if host is None or host.nbytes() != storage.nbytes():
                host = _host_memory(storage.nbytes())
            self._asleep.append((storage, host.copy_(storage, non_blocking=True)))
        self._kept = {storage._cdata: host for storage, host in self._asleep}
        _finish_copies()
        for storage, _ in self._asleep:
            storage.resize_(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # For the other processes of this GPU.
        return sum(host.nbytes() for _, host in self._asleep)

    def wake(self) -> None:
        """Does nothing where nothing sleeps."""
        for storage, host in self._asleep:
            storage.resize_(host.nbytes())
            storage.copy_(host, non_blocking=True)
        _finish_copies()
        self._asleep = []

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Within the block the tensors sleep."""
        self.sleep()
        try:
            yield
        finally:
            self.wake()


def _host_memory(size_bytes: int) -> torch.UntypedStorage:
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).untyped_storage()


def _finish_copies() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def storages_on_gpu(root: object) -> list[torch.UntypedStorage]:
    """The memory that tensors of `root` occupy outside the host, each storage once."""
    tensors = [tensor for tensor in find_tensors(root) if tensor.device.type not in ("cpu", "meta")]
    storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return [storage for storage in storages.values() if storage.nbytes()]


def find_tensors(root: object) -> Iterator[torch.Tensor]:
    """All tensors that are reached from an object, through whatever holds them: containers, attributes, closures."""
    seen: dict[int, object] = {}  # Holds what it has seen, so that no identity is given out twice.
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or issubclass(type(found), LEFT_OUT):
            continue
        seen[id(found)] = found
        if issubclass(type(found), FunctionType):
            waiting += [found.__closure__, found.__dict__, found.__defaults__]  # type: ignore[attr-defined]
            continue
        if isinstance(found, torch.Tensor):
            yield found
            waiting.append(found.grad if found.is_leaf else None)
        waiting += gc.get_referents(found)
