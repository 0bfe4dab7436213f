"""The trust weight: how much a sample counts, by the uncertainty of its reward."""

import torch

TRUST_MEDIAN = 7.3
"""Median that calibration scales the uncertainty to; the mean trust weight is then about the paper's 1.4."""


def trust_weight(uncertainty: torch.Tensor, median: float, k: float, b: float) -> torch.Tensor:
    """Returns gamma = exp(-k u + b) [B] (PrefPaint eq. 12), not divided by its mean; uncertainty [B].

    u is the uncertainty scaled so that `median`, its median on part C, becomes 7.3.
    """
    return torch.exp(-k * uncertainty * (TRUST_MEDIAN / median) + b)
