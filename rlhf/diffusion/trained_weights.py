"""The trained part of a network: fresh adapters or all weights, as tensors by name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without_adapters(network: Any) -> Iterator[None]:
    """Switch the adapters off within the block: the network is then the base model, with no second copy."""
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()


def trainable_state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trained tensors by name, on the CPU."""
    return {n: p.detach().cpu().clone() for n, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable_state(network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put the tensors of `trainable_state` into a network of the same kind; raises ValueError if names differ."""
    own = {n: p for n, p in network.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ValueError(f"weights do not fit this network: {odd}")
    for name, parameter in own.items():
        parameter.copy_(state[name])
