"""How a network's frozen weights are held, and how far rounding may move a ratio.

In bf16, autocast rounds the weights of matrix products and convolutions in every forward pass. Weights that are held
rounded give the same numbers to the bit in half the memory. Norms, tables and everything trained stay in float32.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rlhf.config.align_config import AlignConfig

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose weights autocast rounds."""
BOUNDS = {
    "ratio_error": {"fp32": 1e-5, "bf16": 1e-4},
    "prediction_error": {"fp32": 1e-5, "bf16": 1.5e-3},
}
"""Defaults of `align.max_ratio_error`, measured by benchmarks/ratio_error.py; docs/results/precision.md has reasons."""
IN_BF16 = frozenset(
    ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "__matmul__", "mm", "bmm", "addmm")
    + ("baddbmm", "einsum", "scaled_dot_product_attention")
)
IN_FP32 = frozenset(
    ("layer_norm", "group_norm", "rms_norm", "softmax", "exp", "log", "log2", "reciprocal", "rsqrt", "pow", "__pow__")
    + ("softplus", "sum", "prod", "cumsum", "interpolate", "norm")
)
"""Functions that autocast runs in bfloat16 and in float32 on a GPU, by name (ATen/autocast_mode.h)."""


def hold_frozen(network: nn.Module, precision: str) -> None:
    """In bf16, holds the frozen weights that autocast rounds in bfloat16."""
    if precision != "bf16":
        return
    for _, parameter in rounded_parameters(network):
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def rounded_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that autocast rounds, with their names."""
    for name, module in network.named_modules():
        if isinstance(module, ROUNDED):
            yield from module.named_parameters(name, recurse=False)


def in_precision(device: torch.device, precision: str) -> AbstractContextManager:
    """Within the block, functions compute in `fp32` or `bf16` as autocast chooses.

    PyTorch has no autocast for the meta device; there a GPU's choices stand in for it.
    """
    if device.type != "meta":
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    return _MetaAutocast() if precision == "bf16" else nullcontext()


class _MetaAutocast(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        dtype = torch.bfloat16 if name in IN_BF16 else torch.float32 if name in IN_FP32 else None
        if dtype is not None:
            args = tuple(_cast(value, dtype) for value in args)
            kwargs = {key: _cast(value, dtype) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.bfloat16)
    return value.to(dtype) if is_float else value


def error_bound(config: AlignConfig, precision: str, error: str = "ratio_error") -> float:
    """Largest accepted disagreement of a learner with a sampler before the first optimizer step, by its name."""
    return BOUNDS[error][precision] if config.max_ratio_error is None else config.max_ratio_error
