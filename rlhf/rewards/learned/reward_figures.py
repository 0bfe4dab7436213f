"""What is measured of a reward model on photographs that it has never seen."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf.data.prompts import Prompt
from rlhf.reports.intervals import cluster_bootstrap, rank_correlation
from rlhf.rewards.learned.bound import RidgeHead
from rlhf.rewards.learned.reward_memory import DescribedAnnotations
from rlhf.rewards.learned.reward_model import Calibration, RewardModel

SIZE_GROUPS = 5
CALIBRATION_GROUPS = 10
TRUSTED = 8
"""Candidates that the page shows from either end of the uncertainty."""


@dataclass(frozen=True, kw_only=True)
class ScoredAnnotations:
    """Annotations beside what the reward model says of their images: [N] throughout, in sd of scores."""

    reward: np.ndarray
    uncertainty: np.ndarray
    scores: np.ndarray
    keys: list[tuple[str, int]]
    photographs: list[str]
    sources: list[str]
    holes: list[str]
    hole_shares: np.ndarray
    """Share of the image that is to be repainted, 0 to 1."""

    @property
    def errors(self) -> np.ndarray:
        """|score - reward|."""
        return np.abs(self.scores - self.reward)


def score_annotations(head: RidgeHead, data: DescribedAnnotations, prompts: dict[str, Prompt]) -> ScoredAnnotations:
    """What the head says of annotations, and what their prompts are."""
    of = [prompts[prompt_id] for prompt_id, _ in data.keys]
    hole_shares = {name: float(prompts[name].mask.mean()) for name in {prompt_id for prompt_id, _ in data.keys}}
    return ScoredAnnotations(
        reward=head.reward(data.features).numpy(),
        uncertainty=head.uncertainty(data.features).numpy(),
        scores=data.scores.numpy(),
        keys=data.keys,
        photographs=data.photographs,
        sources=[prompt.source for prompt in of],
        holes=[prompt.hole for prompt in of],
        hole_shares=np.array([hole_shares[prompt_id] for prompt_id, _ in data.keys]),
    )


def report_figures(model: RewardModel, data: ScoredAnnotations) -> dict[str, Any]:
    """Accuracy, errors by kind of prompt, coverage, width, correlations; intervals are clustered by photograph."""
    covered = (data.errors <= model.calibration.conformal * data.uncertainty).astype(float)
    return bound_figures(model.calibration, data.reward, data.uncertainty, data.scores, data.keys, data.photographs) | {
        "pair_accuracy_interval": pair_accuracy_interval(data),
        "error_by_source": errors_by(data, data.sources, covered),
        "error_by_hole": errors_by(data, data.holes, covered),
        "error_by_hole_size": errors_by(data, hole_sizes(data), covered),
        "calibration_curve": calibration_curve(data),
    }


def bound_figures(
    calibration: Calibration,
    reward: np.ndarray,
    uncertainty: np.ndarray,
    scores: np.ndarray,
    keys: list[tuple[str, int]],
    photographs: list[str],
) -> dict[str, Any]:
    """The figures that need neither pictures nor prompts; reward, uncertainty and scores are [N]."""
    errors = np.abs(scores - reward)
    covered = (errors <= calibration.conformal * uncertainty).astype(float)
    return {
        "calibration": asdict(calibration),
        "coverage_stated": calibration.coverage,
        "coverage_measured": asdict(cluster_bootstrap(covered, photographs)),
        "mean_width": float(2 * calibration.conformal * uncertainty.mean()),
        "mean_theorem_width": float(2 * calibration.theorem * uncertainty.mean()),
        "rank_correlation_error_uncertainty": asdict(
            cluster_bootstrap(np.stack([errors, uncertainty], 1), photographs, statistic=rank_correlation)
        ),
        "rank_correlation_reward_score": asdict(
            cluster_bootstrap(np.stack([reward, scores], 1), photographs, statistic=rank_correlation)
        ),
        "pair_accuracy": pair_accuracy(reward, scores, keys),
        "reliability": reliability(errors, uncertainty, calibration.conformal),
        "error": asdict(cluster_bootstrap(errors, photographs)),
    }


def pair_accuracy(reward: np.ndarray, scores: np.ndarray, keys: list[tuple[str, int]]) -> float | None:
    """Share of pairs of one prompt's samples, scored differently, that the reward orders as the scores do."""
    hits, _ = _ordered_pairs(reward, scores, keys)
    return float(np.mean(hits)) if hits else None


def pair_accuracy_interval(data: ScoredAnnotations) -> dict[str, Any] | None:
    """The same with its interval and the number of `pairs`; None where there is no pair."""
    hits, rows = _ordered_pairs(data.reward, data.scores, data.keys)
    if not hits:
        return None
    estimate = cluster_bootstrap(np.array(hits, dtype=float), [data.photographs[row] for row in rows])
    return asdict(estimate) | {"pairs": len(hits)}


def _ordered_pairs(reward: np.ndarray, scores: np.ndarray, keys: list[tuple[str, int]]) -> tuple[list[bool], list[int]]:
    """Per pair whether it is ordered alike, and one of its two rows."""
    members = defaultdict(list)
    for index, key in enumerate(keys):
        members[key[0]].append(index)
    pairs = [
        ((reward[i] > reward[j]) == (scores[i] > scores[j]), i)
        for rows in members.values()
        for n, i in enumerate(rows)
        for j in rows[:n]
        if scores[i] != scores[j] and keys[i] != keys[j]
    ]
    return [bool(hit) for hit, _ in pairs], [row for _, row in pairs]


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


def errors_by(data: ScoredAnnotations, groups: list[str], covered: np.ndarray) -> list[dict[str, Any]]:
    """Per group, in the order of names: how much is in it, mean |score - reward| and coverage with intervals.

    Shapes: groups and covered [N], the latter 1 where the bound holds.
    """
    labels, errors = np.array(groups), data.errors
    table = []
    for name in sorted(set(groups)):
        rows = np.flatnonzero(labels == name)
        photographs = [data.photographs[row] for row in rows]
        table.append(
            {
                "name": name,
                "annotations": len(rows),
                "candidates": len({data.keys[row] for row in rows}),
                "photographs": len(set(photographs)),
                "error": asdict(cluster_bootstrap(errors[rows], photographs)),
                "coverage": asdict(cluster_bootstrap(covered[rows], photographs)),
            }
        )
    return table


def hole_sizes(data: ScoredAnnotations) -> list[str]:
    """The fifth of the prompts, ordered by their hole's share of the image, that each row is in: [N] of names.

    Holes of one size are in one fifth, so there may be fewer than five.
    """
    share_of = {key[0]: float(share) for key, share in zip(data.keys, data.hole_shares, strict=True)}
    shares = np.array(list(share_of.values()))
    below, upto = (np.searchsorted(np.sort(shares), shares, side=side) for side in ("left", "right"))
    fifths = (SIZE_GROUPS * (below + upto) / 2 / len(shares)).astype(int).clip(max=SIZE_GROUPS - 1)
    names = {}
    for number in set(fifths.tolist()):
        low, high = (f"{end(shares[fifths == number]):.1%}" for end in (np.min, np.max))
        names[number] = f"{number + 1}: {low}" if low == high else f"{number + 1}: {low} to {high}"
    fifth_of = dict(zip(share_of, fifths.tolist(), strict=True))
    return [names[fifth_of[prompt_id]] for prompt_id, _ in data.keys]


def calibration_curve(data: ScoredAnnotations) -> list[dict[str, Any]]:
    """In ten equal groups by reward: its mean, and the mean score with its interval."""
    return [
        {
            "reward": float(data.reward[part].mean()),
            "score": asdict(cluster_bootstrap(data.scores[part], [data.photographs[row] for row in part])),
        }
        for part in np.array_split(np.argsort(data.reward, kind="stable"), CALIBRATION_GROUPS)
        if len(part)
    ]


def rank_by_trust(data: ScoredAnnotations, conformal: float) -> dict[str, list[dict[str, Any]]]:
    """`most` and `least` certain candidates, the extreme ones first, none in both: reward, bound, mean score."""
    rows_of: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, key in enumerate(data.keys):
        rows_of[key].append(row)
    ordered = sorted(rows_of, key=lambda key: data.uncertainty[rows_of[key][0]])

    def describe(key: tuple[str, int]) -> dict[str, Any]:
        first = rows_of[key][0]
        return {
            "prompt_id": key[0],
            "sample_index": key[1],
            "photograph": data.photographs[first],
            "hole": data.holes[first],
            "reward": float(data.reward[first]),
            "uncertainty": float(data.uncertainty[first]),
            "bound": float(conformal * data.uncertainty[first]),
            "score": float(data.scores[rows_of[key]].mean()),
            "annotations": len(rows_of[key]),
        }

    least = ordered[TRUSTED:][-TRUSTED:][::-1]
    return {"most": [describe(key) for key in ordered[:TRUSTED]], "least": [describe(key) for key in least]}
