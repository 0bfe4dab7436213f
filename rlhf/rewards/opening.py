"""What every kind of reward is opened with, besides its entry."""

from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf.config.align_config import Trust


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Circumstances of a process that opens rewards."""

    device: torch.device
    """Device of the rewards' networks."""
    folder: Path | None = None
    """Reward folder that --reward names."""
    trust: Trust = "auto"
    """Trust weight that rewards with a bound give, as in `align.trust`."""
