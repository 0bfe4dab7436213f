"""How an alignment went: the reward that it climbed and the gold judge, at every policy that it saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.paired_statistics import LEVEL, estimate_paired
from rlhf.errors import UserError
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS
from rlhf.reports.metrics_log import read_metrics
from rlhf.storage.tables import CURVE, read_table

SPREADS = ("trust_weight_std", "effective_sample_share")
"""Figures of an update that tell whether weights can do anything."""


@dataclass(frozen=True, kw_only=True)
class ArmCurve:
    """One run: V saved policies, the base model first, on the same N held-out samples of the same noise."""

    versions: np.ndarray
    """int [V], ascending from 0: updates."""
    reward: np.ndarray
    """[V, N], by the reward model that the run was given: the proxy."""
    gold: np.ndarray
    """[V, N]."""
    photographs: tuple[str, ...]
    """[N]."""
    spread: dict[str, float]
    """Means of SPREADS over the updates, and of their last quarter as `late_*`."""

    def rise(self, name: str) -> np.ndarray:
        """Mean of `reward` or `gold` less that of the base model, [V]."""
        means = getattr(self, name).mean(axis=1)
        return means - means[0]


def read_arm(folder: Path) -> ArmCurve:
    """The curve of a finished arm; UserError where its table is damaged or holds no whole grid."""
    path = folder / "evaluation" / "curve"
    rows = sorted(read_table(path, CURVE), key=lambda r: (r["policy_version"], r["prompt_id"], r["sample_index"]))
    versions = sorted({row["policy_version"] for row in rows})
    size = len(rows) // len(versions)
    keys = [(row["prompt_id"], row["sample_index"]) for row in rows]
    if keys != keys[:size] * len(versions) or versions[0] != 0:
        raise UserError(f"{path}: not every policy was judged on every sample; remove it and run the study again")
    shape = (len(versions), size)
    return ArmCurve(
        versions=np.array(versions),
        reward=np.array([row["reward"] for row in rows], dtype=float).reshape(shape),
        gold=np.array([row["gold"] for row in rows], dtype=float).reshape(shape),
        photographs=tuple(row["photograph"] for row in rows[:size]),
        spread=measure_spread(read_metrics(folder / "align")),
    )


def measure_spread(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of SPREADS over all updates, and over the last quarter of them."""
    late = lines[-max(1, len(lines) // 4) :] if lines else lines
    found = {name: float(np.mean([line[name] for line in lines])) for name in SPREADS if lines}
    return found | {f"late_{name}": float(np.mean([line[name] for line in late])) for name in SPREADS if lines}


@dataclass(frozen=True, kw_only=True)
class Onset:
    """Where a run began to over-optimise."""

    peak: int
    """Update of the policy with the highest gold mean so far: what came after was worse."""
    confirmed: int
    """Update of the first saved policy that is certainly worse than the peak, though the reward is higher."""


def find_onset(curve: ArmCurve) -> Onset | None:
    """The first saved policy whose gold is significantly below the best before it while the reward has risen since.

    Significantly: the t interval of the mean difference over photographs lies below 0, at 5 % divided by the number of
    policies that are looked at (Bonferroni). None where no policy is that, and below LEAST_PHOTOGRAPHS.
    """
    if len(set(curve.photographs)) < LEAST_PHOTOGRAPHS:
        return None
    gold, reward = curve.gold.mean(axis=1), curve.reward.mean(axis=1)
    for v in range(1, len(curve.versions)):
        best = int(gold[:v].argmax())
        if gold[v] >= gold[best] or reward[v] <= reward[best]:
            continue
        fall = mean_by_photograph(curve.gold[v] - curve.gold[best], curve.photographs)
        high = estimate_paired(fall, level=LEVEL / (len(curve.versions) - 1)).high
        if high is not None and high < 0:
            return Onset(peak=int(curve.versions[best]), confirmed=int(curve.versions[v]))
    return None


def mean_by_photograph(values: np.ndarray, photographs: Sequence[str]) -> np.ndarray:
    """One mean per photograph, in the order of their names; values [N]."""
    _, places = np.unique(np.asarray(photographs), return_inverse=True)
    return np.bincount(places, weights=values) / np.bincount(places)


def updates_to_reach(versions: np.ndarray, values: np.ndarray, level: float) -> float | None:
    """Updates after which `values` [V] first reach the level, on straight lines between saved policies.

    None where they never do: it would take more than the last update, and nobody knows how many.
    """
    above = np.flatnonzero(values >= level)
    if not len(above):
        return None
    first = int(above[0])
    if first == 0:
        return float(versions[0])
    share = (level - values[first - 1]) / (values[first] - values[first - 1])
    return float(versions[first - 1] + share * (versions[first] - versions[first - 1]))
