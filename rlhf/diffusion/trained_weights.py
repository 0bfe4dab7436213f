"""The trained part of a network: fresh adapters or all weights, as tensors by name."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rlhf.storage.checksum import quick_checksum


@contextmanager
def without_adapters(network: Any) -> Iterator[None]:
    """Switch the adapters off within the block: the network is then the base model, with no second copy."""
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()


def trainable_state(network: torch.nn.Module, rounded: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Copies of the trained tensors by name, on the CPU; those of the names `rounded` in bfloat16."""
    return {n: host_copy(p, is_rounded=n in rounded) for n, p in network.named_parameters() if p.requires_grad}


def host_copy(parameter: torch.Tensor, *, is_rounded: bool) -> torch.Tensor:
    """A copy on the CPU, of half the size if it is rounded to bfloat16."""
    tensor = parameter.detach()
    return tensor.to(torch.bfloat16, copy=True).cpu() if is_rounded else tensor.cpu().clone()


@torch.no_grad()
def load_trainable_state(network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put the tensors of `trainable_state` into a network of the same kind; raises ValueError if names differ."""
    own = {n: p for n, p in network.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ValueError(f"weights do not fit this network: {odd}")
    for name, parameter in own.items():
        parameter.copy_(state[name])


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values without a copy, or a copy from a GPU; bfloat16, which NumPy lacks, as its bits in uint16."""
    host = tensor.detach().cpu().contiguous()
    return (host.view(torch.uint16) if host.dtype == torch.bfloat16 else host).numpy()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The tensor of `as_array`, to be read only, without a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


@torch.no_grad()
def load_arrays(network: torch.nn.Module, arrays: Mapping[str, np.ndarray], precision: str) -> None:
    """Put some of the trained tensors into a network, which holds them as they come.

    A network that computes in fp32 holds none in bfloat16: its `checksum_trained` then differs from the sender's.
    """
    own = dict(network.named_parameters())
    for name, array in arrays.items():
        tensor, parameter = as_tensor(array), own[name]
        if tensor.dtype != parameter.dtype and (precision == "bf16" or tensor.dtype == torch.float32):
            parameter.data = parameter.data.to(tensor.dtype)
        parameter.copy_(tensor)


def checksum_trained(network: torch.nn.Module) -> str:
    """The `quick_checksum` of the trained tensors that a network holds; copies few at a time from a GPU."""
    return quick_checksum({n: p for n, p in network.named_parameters() if p.requires_grad}, as_array)
