"""Where networks run."""

import torch

from rlhf.errors import UserError


def resolve_device(choice: str) -> torch.device:
    """The device of `model.device`; UserError where `cuda` is asked for and there is none."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device: cuda asked for, but PyTorch sees no GPU; use auto or cpu")
    return torch.device("cuda" if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()) else "cpu")
