"""Normalises marks to scores: subtracts each annotator's bias, then standardises within source x hole family."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json

FILE = "normalisation.json"
MIN_VARIANCE = 1e-6
"""Smallest variance of a family, for marks that are almost equal."""
Family = tuple[str, str]
"""Source and hole family."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """The affine map (mark - bias) / sd - mean / sd of each column of marks; all arrays are float64 [C]."""

    biases: Mapping[str, np.ndarray]
    """Bias by annotator: mean deviation of the marks from their families' means, in points."""
    means: Mapping[Family, np.ndarray]
    """Mean of the marks without bias, by family."""
    sds: Mapping[Family, np.ndarray]
    """Standard deviation around `means`, by family."""
    pooled_mean: np.ndarray
    """Mean of all marks without bias."""
    pooled_sd: np.ndarray

    def apply(self, marks: np.ndarray, families: Sequence[Family], annotators: Sequence[str]) -> np.ndarray:
        """Converts marks [N, C] to normalised scores [N, C].

        An unknown annotator has no bias, so that a shift in the scores is not attributed to them. An unknown family has
        the mean and deviation of all marks.
        """
        no_bias = np.zeros_like(self.pooled_mean)
        biases = np.stack([self.biases.get(name, no_bias) for name in annotators])
        means = np.stack([self.means.get(family, self.pooled_mean) for family in families])
        sds = np.stack([self.sds.get(family, self.pooled_sd) for family in families])
        return (marks - biases - means) / sds

    def save(self, folder: Path) -> None:
        """Writes `normalisation.json`."""
        families = [
            {"source": source, "hole": hole, "mean": mean.tolist(), "sd": self.sds[source, hole].tolist()}
            for (source, hole), mean in self.means.items()
        ]
        record = {
            "annotators": {name: bias.tolist() for name, bias in self.biases.items()},
            "families": families,
            "pooled": {"mean": self.pooled_mean.tolist(), "sd": self.pooled_sd.tolist()},
        }
        atomic_write_json(folder / FILE, record)


def measure_normalisation(marks: np.ndarray, families: Sequence[Family], annotators: Sequence[str]) -> Normalisation:
    """Measures the normalisation on marks [N, C] of all annotators (PrefPaint, appendix A, with standard deviations).

    An annotator's bias is the mean difference between their marks and the means of the families, before correction.
    """
    biases = _means_of(marks - _rows_of(_means_of(marks, families), families), annotators)
    unbiased = marks - _rows_of(biases, annotators)
    means = _means_of(unbiased, families)
    variances = _means_of((unbiased - _rows_of(means, families)) ** 2, families)
    return Normalisation(
        biases=biases,
        means=means,
        sds={family: np.sqrt(np.maximum(variance, MIN_VARIANCE)) for family, variance in variances.items()},
        pooled_mean=unbiased.mean(0),
        pooled_sd=np.sqrt(np.maximum(unbiased.var(0), MIN_VARIANCE)),
    )


def load_normalisation(folder: Path) -> Normalisation:
    """Reads `normalisation.json`. Raises UserError if it is missing or damaged."""
    try:
        record = json.loads((folder / FILE).read_text())
        families = {(f["source"], f["hole"]): f for f in record["families"]}
        return Normalisation(
            biases={unicodedata.normalize("NFC", name): np.array(bias) for name, bias in record["annotators"].items()},
            means={family: np.array(f["mean"]) for family, f in families.items()},
            sds={family: np.array(f["sd"]) for family, f in families.items()},
            pooled_mean=np.array(record["pooled"]["mean"]),
            pooled_sd=np.array(record["pooled"]["sd"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: no readable {FILE} ({error}); fit it anew with `rlhf reward`") from error


def _means_of(values: np.ndarray, groups: Sequence[Any]) -> dict[Any, np.ndarray]:
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    return {group: values[rows].mean(0) for group, rows in members.items()}


def _rows_of(means: Mapping[Any, np.ndarray], groups: Sequence[Any]) -> np.ndarray:
    return np.stack([means[group] for group in groups])
