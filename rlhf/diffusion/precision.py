"""How a network's frozen weights are held, and how far rounding may move a ratio.

In bf16, autocast rounds the weights of matrix products and convolutions in every forward pass. Weights that are held
rounded give the same numbers to the bit in half the memory. Norms, tables and everything trained stay in float32.
"""

from collections.abc import Iterator

import torch
from torch import nn

from rlhf.config.align_config import AlignConfig

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose weights autocast rounds."""
BOUNDS = {
    "ratio_error": {"fp32": 1e-5, "bf16": 1e-4},
    "prediction_error": {"fp32": 1e-5, "bf16": 1.5e-3},
}
"""Defaults of `align.max_ratio_error`, measured by benchmarks/ratio_error.py; docs/results/precision.md has reasons."""


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


def error_bound(config: AlignConfig, precision: str, error: str = "ratio_error") -> float:
    """Largest accepted disagreement of a learner with a sampler before the first optimizer step, by its name."""
    return BOUNDS[error][precision] if config.max_ratio_error is None else config.max_ratio_error
