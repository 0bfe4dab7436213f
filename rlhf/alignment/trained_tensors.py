"""The trained tensors of a learner's network: whole on every rank, or split over the ranks by ZeRO stage 3."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from rlhf.alignment.collectives import count_ranks, own_rank
from rlhf.diffusion.trained_weights import host_copy, load_trainable_state, trainable_state

State = dict[str, torch.Tensor]
"""Tensors by the names of the network's parameters, on the CPU."""


class TrainedTensors(Protocol):
    """What a learner does with the tensors that it trains."""

    def own(self) -> State:
        """Copies of what this rank holds of them."""

    def whole(self, rounded: Collection[str] = ()) -> State:
        """Copies of them, those of the names `rounded` in bfloat16.

        All ranks call it; where the tensors are split, only rank 0 gets them.
        """

    @contextmanager
    def holding(self, own: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Within the block the network has other values, a state of `own`; all ranks enter it."""


class WholeTensors:
    """Every rank holds all of them."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    def own(self) -> State:
        """All of them."""
        return trainable_state(self._network)

    def whole(self, rounded: Collection[str] = ()) -> State:
        """See `TrainedTensors`."""
        return trainable_state(self._network, rounded)

    @contextmanager
    def holding(self, own: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """See `TrainedTensors`."""
        trained = trainable_state(self._network)
        load_trainable_state(self._network, own)
        try:
            yield
        finally:
            load_trainable_state(self._network, trained)


class SplitTensors:
    """Every rank holds an equally long slice of each, flat, padded at the end of the last one."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._parameters: dict[str, Any] = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}

    def own(self) -> State:
        """This rank's slices."""
        return {name: p.ds_tensor.detach().cpu().clone() for name, p in self._parameters.items()}

    def whole(self, rounded: Collection[str] = ()) -> State:
        """Gathers them one by one, so that no more than one is whole on a device."""
        import deepspeed

        self._engine.empty_partition_cache()
        state = {}
        for name, parameter in self._parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                if own_rank() == 0:
                    state[name] = host_copy(parameter, is_rounded=name in rounded)
        return state

    @contextmanager
    def holding(self, own: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """See `TrainedTensors`; nothing is gathered."""
        trained = self.own()
        self._put(own)
        try:
            yield
        finally:
            self._put(trained)

    def cut_again(self, slices: Sequence[Mapping[str, torch.Tensor]]) -> State:
        """This rank's slices, from those that any number of ranks held, in the order of the ranks."""
        state = {}
        for name, parameter in self._parameters.items():
            flat, size = torch.cat([own[name] for own in slices])[: parameter.ds_numel], parameter.ds_tensor.ds_numel
            padded = torch.nn.functional.pad(flat, (0, size * count_ranks() - len(flat)))
            state[name] = padded[own_rank() * size :][:size].clone()
        return state

    def _put(self, own: Mapping[str, torch.Tensor]) -> None:
        self._engine.empty_partition_cache()  # Otherwise a parameter that is gathered keeps its old values.
        for name, parameter in self._parameters.items():
            parameter.ds_tensor.data.copy_(own[name])
