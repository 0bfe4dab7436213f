"""Joins candidates with their annotations: normalised scores, splits by photograph, and the noise of a score."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlhf.data.candidate_table import Key
from rlhf.data.descriptions import Descriptions
from rlhf.data.normalisation import Normalisation, measure_normalisation
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import AnyPrompt, PromptFacts
from rlhf.data.ranks import ALONE, Ranks
from rlhf.data.rows import AnnotationRow, marks_of
from rlhf.errors import UserError

MIN_REPEATS = 10
"""Smallest number of repeated annotations for a noise estimate; with fewer, the head's residuals replace it."""
SHRINKAGE = 4.0
"""Weight of the common variance in a prompt's variance, in images."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedImages:
    """Annotated images, one row per annotation: [N] throughout."""

    pictures: Pictures
    """Images and masks by key; rows do not hold them."""
    scores: torch.Tensor
    """Total scores, normalised per source x hole family and per annotator."""
    marks: torch.Tensor
    """[N, 3]: structure, texture and overall, normalised in the same way."""
    keys: list[tuple[str, int]]
    photographs: list[str]
    described: Descriptions | None = None
    """Output of a fixed backbone for the images and augmented versions."""
    ranks: Ranks = ALONE
    """Workers that learn from these rows together."""

    def of(self, photographs: set[str]) -> "AnnotatedImages":
        """Returns the rows of the given photographs."""
        return self.rows([i for i, name in enumerate(self.photographs) if name in photographs])

    def rows(self, rows: list[int]) -> "AnnotatedImages":
        """Returns the rows with the given numbers."""
        return replace(
            self,
            scores=self.scores[rows],
            marks=self.marks[rows],
            keys=self.keys_of(rows),
            photographs=[self.photographs[i] for i in rows],
        )

    def keys_of(self, rows: Sequence[int]) -> list[Key]:
        """Returns the keys of some rows."""
        return [self.keys[row] for row in rows]

    def prompt_numbers(self) -> torch.Tensor:
        """Returns each row's prompt as int64 [N], numbered from 0 in order of appearance."""
        numbers: dict[str, int] = {}
        return torch.tensor([numbers.setdefault(prompt_id, len(numbers)) for prompt_id, _ in self.keys])


def join_annotations(
    prompts: Mapping[str, AnyPrompt],
    candidates: Mapping[Key, torch.Tensor],
    annotations: list[AnnotationRow],
    normalisation: Normalisation | None = None,
) -> AnnotatedImages:
    """Returns normalised scores of all annotations with a candidate; no picture is decoded.

    The default normalisation is measured on these annotations. Raises UserError if no annotation has a candidate, or
    if the normalisation must be measured and all scores are equal.
    """
    normalisation = normalisation or measure_scores(prompts, candidates, annotations)
    rows = annotations_of(candidates, annotations)
    normalised = torch.from_numpy(normalisation.apply(*score_columns(prompts, rows))).float()
    keys = [(r["prompt_id"], r["sample_index"]) for r in rows]
    return AnnotatedImages(
        pictures=Pictures(prompts, candidates),
        scores=normalised[:, 3],
        marks=normalised[:, :3],
        keys=keys,
        photographs=[prompts[k[0]].photograph for k in keys],
    )


def count_unknown(candidates: Container[Key], annotations: list[AnnotationRow]) -> int:
    """Counts the annotations without a candidate, which `join_annotations` leaves out."""
    return sum((row["prompt_id"], row["sample_index"]) not in candidates for row in annotations)


def measure_scores(
    prompts: Mapping[str, PromptFacts], candidates: Container[Key], annotations: list[AnnotationRow]
) -> Normalisation:
    """Measures the normalisation on all annotations with a candidate. Raises UserError if all scores are equal."""
    rows = annotations_of(candidates, annotations)
    if np.std([r["annotation_score"] for r in rows]) == 0:
        raise UserError("annotations: all scores are the same, so there is nothing to learn; use the whole scale")
    columns = score_columns(prompts, rows)
    normalisation = measure_normalisation(*columns)
    if float(normalisation.apply(*columns)[:, 3].std()) < 1e-3:
        raise UserError(
            "annotations: all scores of a hole family, less their annotator's mean, are the same, so there is "
            "nothing to learn; use the whole scale"
        )
    return normalisation


def annotations_of(candidates: Container[Key], annotations: list[AnnotationRow]) -> list[AnnotationRow]:
    """Returns the annotations with a candidate. Raises UserError if there are none."""
    rows = [r for r in annotations if (r["prompt_id"], r["sample_index"]) in candidates]
    if not rows:
        raise UserError("annotations: none belongs to these candidates; check that both are of one run")
    return rows


def score_columns(
    prompts: Mapping[str, PromptFacts], rows: list[AnnotationRow]
) -> tuple[np.ndarray, list[tuple[str, str]], list[str]]:
    """Returns marks [N, 4], families and annotators of annotations."""
    marks = np.array([[*marks_of(r), r["annotation_score"]] for r in rows], dtype=float)
    families = [(prompts[r["prompt_id"]].source, prompts[r["prompt_id"]].hole) for r in rows]
    return marks, families, [r["annotator"] for r in rows]


def split_photographs(photographs: list[str], shares: tuple[float, ...], seed: int) -> list[set[str]]:
    """Splits photographs at random into disjoint sets of about the given shares, each with at least one photograph."""
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
    """Returns B, the standard deviation of a score around its image's mean; None with too few repeated scores."""
    scores = defaultdict(list)
    for key, score in zip(data.keys, data.scores.tolist(), strict=True):
        scores[key].append(score)
    repeats = sum(len(s) - 1 for s in scores.values())
    if repeats < MIN_REPEATS:
        return None
    return float(np.sqrt(sum(np.var(s) * len(s) for s in scores.values()) / repeats))


def average_repeats(data: AnnotatedImages) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Averages annotations: returns image numbers by prompt, a row of `data` per image, and mean marks [M, 4]."""
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


def distinct_images(data: AnnotatedImages) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first row of each distinct image, int64 [M], and the image number of each row, int64 [N]."""
    _, first_rows, _ = average_repeats(data)
    numbers = {data.keys[row]: number for number, row in enumerate(first_rows.tolist())}
    return first_rows, torch.tensor([numbers[key] for key in data.keys])


def prompt_weights(data: AnnotatedImages) -> torch.Tensor:
    """Returns the weight of each row, [N]: one over the standard deviation of its prompt's scores, with mean square 1.

    Samples of some prompts differ ten times as much as samples of others; without weights these few prompts decide
    which fills count as better. A prompt's variance is shrunk towards the common one as by `SHRINKAGE` more images.
    """
    rows_of_prompt, _, targets = average_repeats(data)
    variances = torch.stack([targets[rows, 3].var(correction=0) for rows in rows_of_prompt])
    counts = torch.tensor([float(len(rows)) for rows in rows_of_prompt])
    shrunk = (counts * variances + SHRINKAGE * variances.mean()) / (counts + SHRINKAGE)
    weights = shrunk.clamp(min=1e-6).rsqrt()[data.prompt_numbers()]
    return weights / weights.square().mean().sqrt()
