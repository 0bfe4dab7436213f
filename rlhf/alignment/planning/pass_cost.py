"""Memory and arithmetic of passes through a network, counted without running them: tensors on the meta device."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.experimental import _config
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
        self.peak = self._total = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        # Views and results in place lie in the storage of an input.
        there = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(outputs):
            if storage._cdata not in there and storage._cdata not in self._alive:
                self._alive[storage._cdata] = storage.nbytes()
                self._total += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self._total)
        return outputs

    def _free(self, key: int) -> None:
        self._total -= self._alive.pop(key)


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [tensor.untyped_storage() for tensor in tree_iter(tree) if isinstance(tensor, torch.Tensor)]


class _FlashAttention(TorchFunctionMode):
    """Takes flash attention, as every device does; the meta device alone would hold whole matrices of weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        run = _flash_attention if func is scaled_dot_product_attention else func
        return run(*args, **(kwargs or {}))


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: object,
) -> torch.Tensor:
    return FLASH(query, key, value, dropout_p, is_causal, attn_mask=attn_mask)[0]


def count_cost(run: Callable[[], object]) -> PassCost:
    """Returns the cost of `run()`, whose tensors may lie on the meta device; it runs twice.

    Allocators round up and keep freed blocks, and kernels take workspaces: a device needs some percent more.
    """
    live = _LiveBytes()
    _run_in(live, run)
    # Apart, since the counter of FLOPs keeps what checkpointing would free.
    return PassCost(peak_bytes=live.peak, flops=count_flops(run))


def count_flops(run: Callable[[], object]) -> int:
    """Returns `PassCost.flops` of `run()`, whose tensors may lie on the meta device."""
    flops = FlopCounterMode(
        display=False,
        custom_mapping={
            FLASH: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            FLASH_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
        },
    )
    _run_in(flops, run)
    return int(flops.get_total_flops())


def _run_in(mode: AbstractContextManager[object], run: Callable[[], object]) -> None:
    # A selection by a mask, whose size no shape tells, counts as the whole.
    known: Any = _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    with known, mode, _FlashAttention():
        run()


def run_backward(output: torch.Tensor) -> None:
    """`output.backward()`, within which checkpointing computes again as the forward pass did.

    PyTorch's own leaves the surrounding function modes (precision, attention) first.
    """
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (output,), (torch.ones_like(output),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )
