"""Choice of the device for networks, and of their precision there."""

import psutil
import torch

from rlhf.config.run_config import ModelConfig
from rlhf.errors import UserError


def resolve_device(choice: str) -> torch.device:
    """Returns the device of `model.device`; raises UserError if `cuda` is chosen and there is no GPU."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device: cuda asked for, but PyTorch sees no GPU; use auto or cpu")
    return torch.device("cuda" if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()) else "cpu")


def precision_of(config: ModelConfig) -> str:
    """Returns the precision in which this process runs a model."""
    return resolve_precision(config.precision, resolve_device(config.device))


def resolve_precision(choice: str, device: torch.device) -> str:
    """Returns the precision of `model.precision` on a device, `fp32` or `bf16`; `auto` is `bf16` on a GPU alone."""
    return ("bf16" if device.type == "cuda" else "fp32") if choice == "auto" else choice


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a GPU, or of the host."""
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)
