"""The trust weight: how much a sample counts, by the uncertainty of its reward. All of its formulas are here."""

from collections.abc import Mapping

import torch

TRUST_MEDIAN = 7.3
"""Median that calibration scales the uncertainty to; the mean trust weight is then about the paper's 1.4."""
RELEASE_K, RELEASE_B, RELEASE_CLIP = 0.05, 0.7, (1.0, 2.21)
"""k, b and clip in PrefPaint's code; the upper clip never binds."""


def trust_weight(uncertainty: torch.Tensor, median: float, k: float, b: float) -> torch.Tensor:
    """Returns gamma = exp(-k u + b) [B] (PrefPaint eq. 12), not divided by its mean; uncertainty [B].

    u is the uncertainty scaled so that `median`, its median on part C, becomes 7.3.
    """
    return torch.exp(-k * uncertainty * (TRUST_MEDIAN / median) + b)


def release_trust_weight(norm: torch.Tensor) -> torch.Tensor:
    """Returns exp(-0.05 u + 0.7) [B], clipped to [1, 2.21], as PrefPaint's code does; norm [B] is u = ||z' V^-1||."""
    return torch.exp(-RELEASE_K * norm + RELEASE_B).clamp(*RELEASE_CLIP)


def join_trust_weights(columns: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Returns the geometric mean of several rewards' trust weights, float64 [B] each, weighted by |weight|.

    Because the weight is an exponential of the uncertainty, this mean is the trust weight of the mean uncertainty.
    """
    share = sum(abs(weights[name]) for name in columns)
    joined = torch.ones_like(next(iter(columns.values())))
    for name, column in columns.items():
        joined = joined * column ** (abs(weights[name]) / share)
    return joined
