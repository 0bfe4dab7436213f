"""What is measured of a reward model on photographs that it has never seen."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np

from rlhf.bound import RidgeHead
from rlhf.reward_memory import DescribedAnnotations
from rlhf.reward_model import Calibration
from rlhf.statistics import cluster_bootstrap, rank_correlation


def report_figures(head: RidgeHead, calibration: Calibration, data: DescribedAnnotations) -> dict[str, Any]:
    """Measured on photographs that the model has never seen: accuracy, coverage, width, correlations."""
    reward, uncertainty = head.reward(data.features).numpy(), head.uncertainty(data.features).numpy()
    scores = data.scores.numpy()
    errors = np.abs(scores - reward)
    covered = (errors <= calibration.conformal * uncertainty).astype(float)
    accuracy = pair_accuracy(reward, scores, data.keys)
    return {
        "calibration": asdict(calibration),
        "coverage_stated": calibration.coverage,
        "coverage_measured": asdict(cluster_bootstrap(covered, data.photographs)),
        "mean_width": float(2 * calibration.conformal * uncertainty.mean()),
        "rank_correlation_error_uncertainty": asdict(
            cluster_bootstrap(np.stack([errors, uncertainty], 1), data.photographs, statistic=rank_correlation)
        ),
        "rank_correlation_reward_score": asdict(
            cluster_bootstrap(np.stack([reward, scores], 1), data.photographs, statistic=rank_correlation)
        ),
        "pair_accuracy": accuracy,
        "reliability": reliability(errors, uncertainty, calibration.conformal),
    }


def pair_accuracy(reward: np.ndarray, scores: np.ndarray, keys: list[tuple[str, int]]) -> float | None:
    """Share of pairs of one prompt's samples, scored differently, that the reward orders as the scores do."""
    members = defaultdict(list)
    for index, key in enumerate(keys):
        members[key[0]].append(index)
    hits = [
        (reward[i] > reward[j]) == (scores[i] > scores[j])
        for rows in members.values()
        for n, i in enumerate(rows)
        for j in rows[:n]
        if scores[i] != scores[j] and keys[i] != keys[j]
    ]
    return float(np.mean(hits)) if hits else None


def reliability(errors: np.ndarray, uncertainty: np.ndarray, conformal: float) -> list[dict[str, float]]:
    """Per fifth of the uncertainty: its mean, the mean error, the bound's mean, the coverage."""
    rows = []
    for part in np.array_split(np.argsort(uncertainty), 5):
        if len(part):
            rows.append(
                {
                    "uncertainty": float(uncertainty[part].mean()),
                    "error": float(errors[part].mean()),
                    "bound": float(conformal * uncertainty[part].mean()),
                    "coverage": float((errors[part] <= conformal * uncertainty[part]).mean()),
                }
            )
    return rows
