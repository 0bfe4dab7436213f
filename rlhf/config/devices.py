"""Choice of the device for networks."""

import torch

from rlhf.errors import UserError


def resolve_device(choice: str) -> torch.device:
    """Returns the device of `model.device`; raises UserError if `cuda` is chosen and there is no GPU."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device: cuda asked for, but PyTorch sees no GPU; use auto or cpu")
    return torch.device("cuda" if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()) else "cpu")
