"""The trust weight: how much a sample counts, by the uncertainty of its reward. All of its formulas are here."""

from collections.abc import Mapping

import torch

TRUST_MEDIAN = 7.3
"""Median that calibration scales the uncertainty to; the mean trust weight is then about the paper's 1.4."""
RELEASE_K, RELEASE_B, RELEASE_CLIP = 0.05, 0.7, (1.0, 2.21)
"""k, b and clip in PrefPaint's code; the upper clip never binds."""

CONSTANT_TRUST = 1.4
"""Trust weight for `align.trust: constant` (the paper's mean). Division by the batch mean cancels it."""


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


def choose_trust(trust: str, reward: torch.Tensor, by_bound: torch.Tensor | None) -> torch.Tensor:
    """Returns trust weights, float32 [B], by the setting `align.trust`, before division by their mean.

    `by_bound` has those of the rewards' bounds, [B]. They are 1 without trust or without a bound.
    """
    if trust == "constant":
        return torch.full_like(reward, CONSTANT_TRUST).float()
    if trust == "none" or by_bound is None:
        return torch.ones_like(reward).float()
    return by_bound.float()


def normalise_trust(trust: torch.Tensor) -> torch.Tensor:
    """Returns trust weights [B] divided by their mean over the update: Adam cancels a constant factor."""
    # A double holds the sum of equal floats exactly, so a constant is divided to 1 whatever their number.
    return (trust.double() / trust.double().mean()).float()
