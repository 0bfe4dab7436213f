"""Curve of an alignment: its training reward and the gold judge at every saved policy."""

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
"""Figures of an update that show whether weights have any effect."""


@dataclass(frozen=True, kw_only=True)
class ArmCurve:
    """Marks of V saved policies of a run, the base model first, on the same N held-out samples with the same noise."""

    versions: np.ndarray
    """Numbers of updates, int [V], ascending from 0."""
    reward: np.ndarray
    """Marks [V, N] by the reward model of the run, the proxy."""
    gold: np.ndarray
    """Marks [V, N] by the gold judge."""
    photographs: tuple[str, ...]
    """Photographs of the samples, [N]."""
    spread: dict[str, float]
    """Means of SPREADS over the updates, and of their last quarter as `late_*`."""

    def rise(self, name: str) -> np.ndarray:
        """Returns the mean of `reward` or `gold` minus that of the base model, [V]."""
        means = getattr(self, name).mean(axis=1)
        return means - means[0]


def read_arm(folder: Path) -> ArmCurve:
    """Reads the curve of a finished arm. Raises UserError if its table is damaged or incomplete."""
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
    """Returns means of SPREADS over all updates, and over the last quarter of them."""
    late = lines[-max(1, len(lines) // 4) :] if lines else lines
    found = {name: float(np.mean([line[name] for line in lines])) for name in SPREADS if lines}
    return found | {f"late_{name}": float(np.mean([line[name] for line in late])) for name in SPREADS if lines}


@dataclass(frozen=True, kw_only=True)
class Onset:
    """Start of over-optimisation in a run."""

    peak: int
    """Update of the policy with the highest gold mean so far."""
    confirmed: int
    """Update of the first saved policy that is significantly worse than the peak, though its reward is higher."""


def find_onset(curve: ArmCurve) -> Onset | None:
    """Returns the first saved policy whose gold is significantly below the best before it while the reward has risen.

    Significantly means that the t interval of the mean difference over photographs lies below 0, at 5 % divided by the
    number of tested policies (Bonferroni). Returns None if there is no such policy, or below LEAST_PHOTOGRAPHS.
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
    """Returns one mean per photograph of values [N], in the order of their names."""
    _, places = np.unique(np.asarray(photographs), return_inverse=True)
    return np.bincount(places, weights=values) / np.bincount(places)


def updates_to_reach(versions: np.ndarray, values: np.ndarray, level: float) -> float | None:
    """Returns the updates after which `values` [V] first reach the level, interpolated between saved policies.

    Returns None if they never reach it.
    """
    above = np.flatnonzero(values >= level)
    if not len(above):
        return None
    first = int(above[0])
    if first == 0:
        return float(versions[0])
    share = (level - values[first - 1]) / (values[first] - values[first - 1])
    return float(versions[first - 1] + share * (versions[first] - versions[first - 1]))
