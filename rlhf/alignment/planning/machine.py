"""The machines of a plan, and the speed of their GPUs."""

import json
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError

GPUS_PER_NODE = 8
STATED_UTILISATION = {"rollout": 0.5, "training": 0.4}
"""Shares of the rate of matrix products that this project aims at. Nothing was measured on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is; None is unknown, and not compared."""

    gpus: int | None = None
    gpu_bytes: int | None = None
    """Memory of each GPU."""
    host_bytes: int | None = None
    """Memory of each node, of up to `GPUS_PER_NODE` GPUs."""

    @classmethod
    def here(cls) -> "Machine":
        """This one."""
        import psutil
        import torch

        gpus = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        return cls(gpus=len(gpus), gpu_bytes=min(gpus, default=None), host_bytes=psutil.virtual_memory().total)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOP/s that a process reaches in a role."""

    rollout: float
    training: float

    @classmethod
    def relative(cls) -> "Rates":
        """Stated ones, for who waits for whom; their unit means nothing."""
        return cls(**STATED_UTILISATION)


def read_rates(file: Path, precision: str) -> Rates:
    """The rates in the JSON file of `python -m benchmarks.gpu`: those of the first variants, LoRA at SD 1.5 or SDXL.

    Raises UserError if the file is of another kind, or holds no figures of both roles.
    """
    try:
        results = json.loads(file.read_text())
        products = results["products_per_s"][precision]
        shares: dict[str, float] = {}
        for part, variants in results["parts"].items():
            use = part.partition("_")[2]
            measured = [v["utilisation"]["median"] for v in variants.values() if "utilisation" in v]
            if measured:
                shares.setdefault(use, measured[0])
        return Rates(rollout=products * shares["rollout"], training=products * shares["training"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: no rates in {precision} of rollouts and training ({error!r}); "
            "name the gpu.json of `python -m benchmarks.gpu`, or give --tflops"
        ) from error
