"""Exchanges of numbers between learner ranks; the only place of this package that calls torch's collectives.

A process group serves certain device types only: NCCL serves CUDA tensors and refuses all others. Every tensor that
ranks exchange is therefore made here, on a device that the group serves.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from rlhf.data.ranks import Ranks

CPU = torch.device("cpu")


def count_ranks() -> int:
    """Returns the number of ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    """Returns this process's rank in the process group; 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_ranks(device: torch.device = CPU) -> Ranks:
    """Returns this process among those of its group; alone without one. `device` is that of its backbone."""
    if not dist.is_initialized():
        return Ranks(device=device)
    return Ranks(rank=own_rank(), count=count_ranks(), add=sum_over_ranks, device=device)


def group_device() -> torch.device:
    """Returns the device of tensors that the process group exchanges: the CPU if it serves it, else the current GPU."""
    served = [part.partition(":")[0] for part in dist.get_backend_config().split(",")]
    return torch.device("cpu" if "cpu" in served else served[0])


def reduce_max(values: torch.Tensor) -> torch.Tensor:
    """Returns the element-wise maximum over all ranks, on the CPU; every rank calls it with the same shape."""
    exchanged = values.to(group_device())
    dist.all_reduce(exchanged, op=dist.ReduceOp.MAX)
    return exchanged.cpu()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Returns the element-wise sum over all ranks, on the CPU; every rank calls it with the same shape."""
    exchanged = values.to(group_device(), copy=True)
    dist.all_reduce(exchanged)
    return exchanged.cpu()


def max_over_ranks(values: Sequence[float]) -> list[float]:
    """Returns each value's maximum over all ranks, in float32; every rank gives the same number of values."""
    return reduce_max(torch.tensor(values)).tolist() if dist.is_initialized() else list(values)


def total_over_ranks(values: Sequence[int]) -> list[int]:
    """Returns each value's sum over all ranks; every rank gives the same number of values."""
    return sum_over_ranks(torch.tensor(values)).tolist() if dist.is_initialized() else list(values)


def mean_over_ranks(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Returns the weighted mean of the rows of all ranks, which have one length; a rank may have weights of 0 alone."""
    weight = torch.tensor(weights, dtype=torch.float64)
    sums = torch.cat([weight @ torch.tensor(rows, dtype=torch.float64), weight.sum()[None]])
    sums = sum_over_ranks(sums) if dist.is_initialized() else sums
    return (sums[:-1] / sums[-1]).tolist()


def any_over_ranks(is_so: bool) -> bool:
    """Returns whether `is_so` holds on any rank; every rank calls it."""
    return max_over_ranks([float(is_so)])[0] > 0
