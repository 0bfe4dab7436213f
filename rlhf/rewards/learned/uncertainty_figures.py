"""Measures how well an uncertainty bounds and orders the errors: coverage by level, risk against coverage."""

import numpy as np
import torch

from rlhf.reports.intervals import estimate_figure, estimate_share
from rlhf.rewards.learned.bound import can_calibrate, conformal_multiplier
from rlhf.rewards.learned.reward_figures import HeldOutAnnotations
from rlhf.rewards.learned.reward_report import LevelCoverage, RiskArea, RiskCoverage, RiskCurve

LEVELS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Nominal coverages, 0.5 to 0.95."""
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Shares of the annotations at which the risk-coverage curve is recorded."""


def coverage_by_level(errors: torch.Tensor, uncertainty: torch.Tensor, data: HeldOutAnnotations) -> list[LevelCoverage]:
    """Calibrates a multiplier for every level, and measures its coverage and mean width on `data`.

    Errors and uncertainty, [N] each, are those of the part that calibrates.
    """
    rows = []
    for level in LEVELS:
        if not can_calibrate(len(errors), level):
            rows.append(LevelCoverage(level=level))
            continue
        multiplier = conformal_multiplier(errors, uncertainty, level)
        covered = estimate_share((data.errors <= multiplier * data.uncertainty).astype(float), data.photographs)
        width = float(2 * multiplier * data.uncertainty.mean())
        rows.append(LevelCoverage(level=level, multiplier=multiplier, coverage=covered, width=width))
    return rows


def selective_risks(errors: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns the mean errors [N] of the 1, 2, .. N rows of least `order` [N]; ties count as their mean."""
    _, tied = np.unique(order, return_inverse=True)
    means = np.bincount(tied, weights=errors) / np.bincount(tied)
    by_order = means[tied][np.argsort(order, kind="stable")]
    return np.cumsum(by_order) / np.arange(1, len(errors) + 1)


def risk_coverage(data: HeldOutAnnotations) -> RiskCoverage:
    """Measures the risk-coverage curve and the area under it (AURC), smaller is better.

    Geifman, Uziel and El-Yaniv (arXiv:1805.08206, section 3), with |error| as the loss: the AURC is the mean risk
    over all shares.
    """
    errors, uncertainty = data.errors, data.uncertainty
    model, oracle = selective_risks(errors, uncertainty), selective_risks(errors, errors)
    places = [max(1, round(share * len(errors))) - 1 for share in SHARES]

    def gain(pairs: np.ndarray) -> float:
        """Returns the gain over random order, of rows of error and uncertainty."""
        return float(pairs[:, 0].mean() - selective_risks(pairs[:, 0], pairs[:, 1]).mean())

    measured = estimate_figure(np.stack([errors, uncertainty], 1), data.photographs, statistic=gain)
    return RiskCoverage(
        risk_coverage=RiskCurve(
            shares=list(SHARES),
            model=model[places].tolist(),
            random=[float(errors.mean())] * len(SHARES),
            oracle=oracle[places].tolist(),
        ),
        aurc=RiskArea(
            model=float(model.mean()), random=float(errors.mean()), oracle=float(oracle.mean()), gain=measured
        ),
    )
