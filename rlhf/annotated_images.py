"""Candidates joined with their annotations: normalised scores, parts by photograph, the noise of a score."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf.errors import UserError
from rlhf.prompts import Prompt

COLUMNS = ("structure", "texture", "overall", "annotation_score")
MIN_REPEATS = 10
"""Repeated annotations needed to measure the noise; with fewer, the head's residuals stand in."""
SHRINKAGE = 4.0
"""Images that the common variance counts for in a prompt's."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """One row per annotation: [N] throughout."""

    images: torch.Tensor
    masks: torch.Tensor
    scores: torch.Tensor
    """The total, normalised per source x hole family and per annotator."""
    marks: torch.Tensor
    """[N, 3]: structure, texture and overall, normalised likewise."""
    keys: list[tuple[str, int]]
    photographs: list[str]

    def of(self, photographs: set[str]) -> "AnnotatedImages":
        """The rows of some photographs."""
        rows = [i for i, name in enumerate(self.photographs) if name in photographs]
        return AnnotatedImages(
            images=self.images[rows],
            masks=self.masks[rows],
            scores=self.scores[rows],
            marks=self.marks[rows],
            keys=[self.keys[i] for i in rows],
            photographs=[self.photographs[i] for i in rows],
        )

    def prompt_numbers(self) -> torch.Tensor:
        """int64 [N]: each row's prompt, numbered from 0 in order of appearance."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(prompt_id, len(numbers)) for prompt_id, _ in self.keys])


def join_annotations(
    prompts: dict[str, Prompt], candidates: dict[tuple[str, int], torch.Tensor], annotations: list[dict[str, Any]]
) -> AnnotatedImages:
    """Images, masks and normalised scores of all annotations that have a candidate.

    A score loses its annotator's mean deviation and is then standardised within source x hole
    family (PrefPaint, appendix A; the standard deviation is what its text means).
    Raises UserError where no annotation fits, or all scores are the same, if only within each group.
    """
    rows = [r for r in annotations if (r["prompt_id"], r["sample_index"]) in candidates]
    if not rows:
        raise UserError("annotations: none belongs to these candidates; check that both are of one run")
    if np.std([r["annotation_score"] for r in rows]) == 0:
        raise UserError("annotations: all scores are the same, so there is nothing to learn; use the whole scale")
    groups = [(prompts[r["prompt_id"]].source, prompts[r["prompt_id"]].hole) for r in rows]
    annotators = [r["annotator"] for r in rows]
    columns = [normalise(np.array([r[name] for r in rows], dtype=float), groups, annotators) for name in COLUMNS]
    normalised = torch.from_numpy(np.stack(columns, axis=1)).float()
    if float(normalised[:, 3].std(correction=0)) < 1e-3:
        raise UserError(
            "annotations: all scores of a hole family, less their annotator's mean, are the same, so there is "
            "nothing to learn; use the whole scale"
        )
    keys = [(r["prompt_id"], r["sample_index"]) for r in rows]
    return AnnotatedImages(
        images=torch.stack([candidates[k] for k in keys]),
        masks=torch.stack([prompts[k[0]].mask for k in keys]),
        scores=normalised[:, 3],
        marks=normalised[:, :3],
        keys=keys,
        photographs=[prompts[k[0]].photograph for k in keys],
    )


def count_unknown(candidates: dict[tuple[str, int], torch.Tensor], annotations: list[dict[str, Any]]) -> int:
    """How many annotations have no candidate; `join_annotations` leaves them out."""
    return sum((row["prompt_id"], row["sample_index"]) not in candidates for row in annotations)


def normalise(scores: np.ndarray, groups: list[Any], annotators: list[str]) -> np.ndarray:
    """Scores [N] less their annotator's mean deviation, standardised within each group."""
    unbiased = _without_bias(scores, groups, annotators)
    return normalise_as(unbiased, scores, groups, annotators)


def normalise_as(values: np.ndarray, scores: np.ndarray, groups: list[Any], annotators: list[str]) -> np.ndarray:
    """Values without bias, [N], on the scale that `normalise` gives the scores of the same rows."""
    unbiased = _without_bias(scores, groups, annotators)
    means = _group_means(unbiased, groups)
    return (values - means) / np.sqrt(np.maximum(_group_means((unbiased - means) ** 2, groups), 1e-6))


def _without_bias(scores: np.ndarray, groups: list[Any], annotators: list[str]) -> np.ndarray:
    return scores - _group_means(scores - _group_means(scores, groups), annotators)


def _group_means(values: np.ndarray, groups: list[Any]) -> np.ndarray:
    """[N]: the mean of each row's group."""
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    means = np.empty_like(values)
    for rows in members.values():
        means[rows] = values[rows].mean()
    return means


def split_photographs(photographs: list[str], shares: tuple[float, ...], seed: int) -> list[set[str]]:
    """Disjoint sets of photographs in about the given shares, each with at least one."""
    names = sorted(set(photographs))
    if len(names) < len(shares):
        raise UserError(f"reward: {len(names)} photographs cannot be split into {len(shares)} parts; annotate more")
    order = np.random.default_rng([seed, 13]).permutation(len(names))
    cuts = np.round(np.cumsum(shares) / sum(shares) * len(names)).astype(int)
    for i in range(len(cuts)):
        least = cuts[i - 1] + 1 if i else 1
        cuts[i] = min(max(cuts[i], least), len(names) - (len(cuts) - 1 - i))
    starts = [0, *cuts[:-1]]
    return [{names[j] for j in order[start:stop]} for start, stop in zip(starts, cuts, strict=True)]


def measure_noise(data: AnnotatedImages) -> float | None:
    """B: standard deviation of a single score around the mean of all, from images scored twice."""
    scores = defaultdict(list)
    for key, score in zip(data.keys, data.scores.tolist(), strict=True):
        scores[key].append(score)
    repeats = sum(len(s) - 1 for s in scores.values())
    if repeats < MIN_REPEATS:
        return None
    return float(np.sqrt(sum(np.var(s) * len(s) for s in scores.values()) / repeats))


def average_repeats(data: AnnotatedImages) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """One target per image: image numbers by prompt, a row of `data` per image, and mean marks [M, 4]."""
    rows_of_image = defaultdict(list)
    for row, key in enumerate(data.keys):
        rows_of_image[key].append(row)
    marks = torch.cat([data.marks, data.scores[:, None]], dim=1)
    targets = torch.stack([marks[rows].mean(0) for rows in rows_of_image.values()])
    images_of_prompt = defaultdict(list)
    for number, key in enumerate(rows_of_image):
        images_of_prompt[key[0]].append(number)
    groups = [torch.tensor(numbers) for numbers in images_of_prompt.values()]
    return groups, torch.tensor([rows[0] for rows in rows_of_image.values()]), targets


def prompt_weights(data: AnnotatedImages) -> torch.Tensor:
    """Weight of each row, [N]: one over its prompt's spread of scores, with mean square 1.

    Samples of some prompts differ ten times as much as those of others; unweighted, these few decide which
    fills count as better everywhere. A prompt's variance is drawn towards that of all, as if by
    `SHRINKAGE` further images.
    """
    rows_of_prompt, _, targets = average_repeats(data)
    variances = torch.stack([targets[rows, 3].var(correction=0) for rows in rows_of_prompt])
    counts = torch.tensor([float(len(rows)) for rows in rows_of_prompt])
    shrunk = (counts * variances + SHRINKAGE * variances.mean()) / (counts + SHRINKAGE)
    weights = shrunk.clamp(min=1e-6).rsqrt()[data.prompt_numbers()]
    return weights / weights.square().mean().sqrt()
