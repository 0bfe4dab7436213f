"""Pairs of candidates of one prompt, of which an annotator gave one the higher score."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from rlhf.data.annotators import load_annotations
from rlhf.data.buckets import Size
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.prompts import Prompt, PromptTable, decode_prompt
from rlhf.data.rows import AnnotationRow
from rlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PreferredPair:
    """Two samples of a prompt, by number."""

    prompt_id: str
    annotator: str
    better: int
    worse: int

    @property
    def name(self) -> str:
        """A name that no other pair of the annotations has."""
        return f"{self.prompt_id} {self.better}>{self.worse} {self.annotator}"


def find_pairs(annotations: Sequence[AnnotationRow]) -> list[PreferredPair]:
    """Returns every pair of samples to which one annotator gave unequal scores, means over rounds, in a fixed order.

    Scores of different annotators are not compared, since each has a scale of their own.
    """
    scores: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in annotations:
        scores[row["prompt_id"], row["annotator"]][row["sample_index"]].append(row["annotation_score"])
    pairs = []
    for (prompt_id, annotator), by_sample in sorted(scores.items()):
        means = sorted((sum(given) / len(given), sample) for sample, given in by_sample.items())
        for (low, worse), (high, better) in combinations(means, 2):
            if high > low:
                pairs.append(PreferredPair(prompt_id=prompt_id, annotator=annotator, better=better, worse=worse))
    return pairs


class PairTable:
    """The pairs of the training prompts, whose pictures are read on demand."""

    def __init__(self, prompts: Path, candidates: Path, annotations: Path) -> None:
        """Checks that every pair has its pictures. Raises UserError if one is missing, or if there is no pair."""
        self._prompts = PromptTable(prompts, split="train")
        pairs = [pair for pair in find_pairs(load_annotations(annotations)) if pair.prompt_id in self._prompts]
        if not pairs:
            raise UserError(
                f"{annotations}: no annotator gave two candidates of a training prompt of {prompts} unequal scores; "
                "annotate more, or name the folders of one run"
            )
        self._pairs = {pair.name: pair for pair in pairs}
        self._candidates = CandidateTable(candidates, self._prompts)
        for pair in pairs:
            for sample in (pair.better, pair.worse):
                if (pair.prompt_id, sample) not in self._candidates:
                    raise UserError(
                        f"{candidates}: no sample {sample} of prompt {pair.prompt_id}, which {annotations} scores; "
                        "name the folders of one run"
                    )

    @property
    def names(self) -> list[str]:
        """Names of all pairs, in a fixed order."""
        return list(self._pairs)

    def sizes(self, names: Sequence[str]) -> dict[str, Size]:
        """Height and width of pairs by name."""
        return {name: self._prompts[self._pairs[name].prompt_id].size for name in names}

    def read(self, names: Sequence[str]) -> tuple[list[Prompt], torch.Tensor]:
        """Returns prompts [P] and pictures, float32 [2P, 3, H, W], of pairs of one size: better, worse and so on.

        Raises UserError with the candidate whose picture is unreadable or of another size than its prompt.
        """
        pairs = [self._pairs[name] for name in names]
        prompts = [decode_prompt(row) for row in self._prompts.rows([pair.prompt_id for pair in pairs])]
        keys = [(pair.prompt_id, sample) for pair in pairs for sample in (pair.better, pair.worse)]
        return prompts, torch.stack([self._candidates[key] for key in keys])
