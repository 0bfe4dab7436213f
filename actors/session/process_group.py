"""How the learner's ranks find each other: through a file where all of them are on this machine, else over TCP."""

import ipaddress
import tempfile
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend


def process_group_config(backend: str) -> TorchConfig:
    """Returns the configuration of Ray Train's process group on the connected cluster; `backend` is gloo or nccl.

    Over TCP rank 0 listens on all interfaces, and whoever reaches it can join the group. So ranks of a cluster that
    is bound to loopback meet in a file.
    """
    is_local = ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback
    return _FileConfig(backend=backend) if is_local else TorchConfig(backend=backend)


@dataclass
class _FileConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Has all ranks join a new group."""
        # Made by the first rank and removed by the last; nobody else may write to it.
        store = f"file://{tempfile.gettempdir()}/{uuid.uuid4().hex}"
        worker_group.execute(_set_torch_distributed_env_vars)
        settings, ranks = (store, backend_config, len(worker_group)), range(len(worker_group))
        ray.get([worker_group.execute_single_async(rank, _join, *settings, rank) for rank in ranks])


def _join(store: str, config: TorchConfig, ranks: int, rank: int) -> None:
    limit = timedelta(seconds=config.timeout_s)
    dist.init_process_group(config.backend, init_method=store, rank=rank, world_size=ranks, timeout=limit)
