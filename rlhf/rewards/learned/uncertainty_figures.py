"""How well an uncertainty bounds and orders the errors: coverage by level, risk against coverage."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from rlhf.reports.intervals import cluster_bootstrap
from rlhf.rewards.learned.bound import can_calibrate, conformal_multiplier
from rlhf.rewards.learned.reward_figures import ScoredAnnotations

LEVELS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""Nominal coverages, 0.5 to 0.95."""
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Where the risk-coverage curve is kept."""


def coverage_by_level(errors: torch.Tensor, uncertainty: torch.Tensor, data: ScoredAnnotations) -> list[dict[str, Any]]:
    """Per level the multiplier calibrated for it, and its coverage and mean width on `data`.

    Errors and uncertainty, [N] each, are those of the part that calibrates. Multiplier, coverage and
    width are None where it is too small for the level.
    """
    rows: list[dict[str, Any]] = []
    for level in LEVELS:
        row: dict[str, Any] = {"level": level, "multiplier": None, "coverage": None, "width": None}
        if can_calibrate(len(errors), level):
            multiplier = conformal_multiplier(errors, uncertainty, level)
            covered = (data.errors <= multiplier * data.uncertainty).astype(float)
            row["multiplier"] = multiplier
            row["coverage"] = asdict(cluster_bootstrap(covered, data.photographs))
            row["width"] = float(2 * multiplier * data.uncertainty.mean())
        rows.append(row)
    return rows


def selective_risks(errors: np.ndarray, order: np.ndarray) -> np.ndarray:
    """[N]: mean error of the 1, 2, .. N rows whose `order` [N] is least; rows of equal order count as their mean."""
    _, tied = np.unique(order, return_inverse=True)
    means = np.bincount(tied, weights=errors) / np.bincount(tied)
    by_order = means[tied][np.argsort(order, kind="stable")]
    return np.cumsum(by_order) / np.arange(1, len(errors) + 1)


def risk_coverage(data: ScoredAnnotations) -> dict[str, Any]:
    """Mean |error| of the most certain share, and the area under that curve (AURC), smaller is better.

    Geifman, Uziel and El-Yaniv (arXiv:1805.08206, section 3), with |error| for the loss: the AURC is the
    mean over all shares. `random`: of a random order, the mean error; `oracle`: of the order of the errors
    themselves, the least that there can be; `gain`: random less model, with its interval.
    """
    errors, uncertainty = data.errors, data.uncertainty
    model, oracle = selective_risks(errors, uncertainty), selective_risks(errors, errors)
    places = [max(1, round(share * len(errors))) - 1 for share in SHARES]

    def gain(pairs: np.ndarray) -> float:
        return float(pairs[:, 0].mean() - selective_risks(pairs[:, 0], pairs[:, 1]).mean())

    measured = cluster_bootstrap(np.stack([errors, uncertainty], 1), data.photographs, statistic=gain)
    return {
        "risk_coverage": {
            "shares": list(SHARES),
            "model": model[places].tolist(),
            "random": [float(errors.mean())] * len(SHARES),
            "oracle": oracle[places].tolist(),
        },
        "aurc": {
            "model": float(model.mean()),
            "random": float(errors.mean()),
            "oracle": float(oracle.mean()),
            "gain": asdict(measured),
        },
    }
