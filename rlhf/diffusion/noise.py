"""Noise by key: the same for whoever draws it, and whenever."""

import hashlib
from collections.abc import Sequence

import torch


def noise_like(shape: Sequence[int], *key: object) -> torch.Tensor:
    """Standard normal noise that depends on `key` alone."""
    return torch.randn(tuple(shape), generator=generator_of(*key))


def generator_of(*key: object) -> torch.Generator:
    """A generator seeded by `key`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
