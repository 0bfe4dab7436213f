"""Memory and arithmetic of passes through a network, counted without running them: tensors on the meta device."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What some passes took besides the tensors that were there before them."""

    peak_bytes: int
    """Largest sum of bytes that were alive at once."""
    flops: int
    """Floating-point operations of matrix products, convolutions and attention: two per multiplication and addition."""


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        # Views and results in place lie in the storage of an input.
        there = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(outputs):
            if storage._cdata not in there | self._alive.keys():
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return outputs


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [tensor.untyped_storage() for tensor in tree_iter(tree) if isinstance(tensor, torch.Tensor)]


class _FlashAttention(TorchFunctionMode):
    """Takes flash attention, as every device does; the meta device alone would hold whole matrices of weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            return FLASH(*args[:3], is_causal=kwargs.get("is_causal", False), attn_mask=mask)[0]
        return func(*args, **kwargs)


@contextmanager
def _counting() -> Iterator[tuple[_LiveBytes, FlopCounterMode]]:
    flops = FlopCounterMode(
        display=False,
        custom_mapping={
            FLASH: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            FLASH_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
        },
    )
    with _LiveBytes() as live, flops, _FlashAttention():
        yield live, flops


def count_cost(run: Callable[[], object]) -> PassCost:
    """Returns the cost of `run()`, whose tensors may lie on the meta device.

    Allocators round up and keep freed blocks, and kernels take workspaces: a device needs some percent more.
    """
    with _counting() as (live, flops):
        run()
    return PassCost(peak_bytes=live.peak, flops=int(flops.get_total_flops()))
