"""Memory of a reward folder: its annotations as features and sums, to which others are added without the pictures."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf.data.annotated_images import AnnotatedImages
from rlhf.data.rows import AnnotationRow, marks_of
from rlhf.errors import UserError
from rlhf.rewards.learned.bound import PromptEffects, discount_prompt_effects
from rlhf.storage.atomic_files import atomic_write, atomic_write_json
from rlhf.storage.url_path import local_copy


@dataclass(frozen=True, kw_only=True)
class AnnotatedFeatures:
    """N annotations as the ridge head sees them: features in place of the pictures of `AnnotatedImages`."""

    features: torch.Tensor
    """[N, d]: z of the annotated images."""
    scores: torch.Tensor
    """[N]: normalised scores."""
    keys: list[tuple[str, int]]
    """[N]: prompt id and sample index."""
    photographs: list[str]
    """[N]: names of the photographs."""

    def joined(self, other: "AnnotatedFeatures") -> "AnnotatedFeatures":
        """Returns these annotations followed by the others."""
        return AnnotatedFeatures(
            features=torch.cat([self.features, other.features]),
            scores=torch.cat([self.scores, other.scores]),
            keys=[*self.keys, *other.keys],
            photographs=[*self.photographs, *other.photographs],
        )

    def of(self, photographs: set[str]) -> "AnnotatedFeatures":
        """Returns the rows of `photographs`."""
        return self.rows([i for i, name in enumerate(self.photographs) if name in photographs])

    def without(self, photographs: set[str]) -> "AnnotatedFeatures":
        """Returns the rows of all photographs but these."""
        return self.rows([i for i, name in enumerate(self.photographs) if name not in photographs])

    def rows(self, rows: list[int]) -> "AnnotatedFeatures":
        """Returns the rows with these numbers."""
        return AnnotatedFeatures(
            features=self.features[rows],
            scores=self.scores[rows],
            keys=[self.keys[i] for i in rows],
            photographs=[self.photographs[i] for i in rows],
        )


def with_features(features: torch.Tensor, data: AnnotatedImages) -> AnnotatedFeatures:
    """Returns annotations with the features [N, d] of their images."""
    return AnnotatedFeatures(
        features=features, scores=data.scores, keys=list(data.keys), photographs=list(data.photographs)
    )


@dataclass(frozen=True, kw_only=True)
class PromptSums:
    """Sums over the annotations of each prompt that the head has seen; they discount later annotations."""

    prompt_ids: tuple[str, ...]
    counts: torch.Tensor
    """float64 [P]: number of annotations."""
    features: torch.Tensor
    """float64 [P, d]: sums of z."""
    scores: torch.Tensor
    """float64 [P]: sums of the scores."""

    def added(self, data: AnnotatedFeatures) -> "PromptSums":
        """Returns the sums with `data` added."""
        numbers = {name: number for number, name in enumerate(self.prompt_ids)}
        places = torch.tensor([numbers.setdefault(prompt_id, len(numbers)) for prompt_id, _ in data.keys])
        new = len(numbers) - len(self.prompt_ids)

        def add(sums: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            longer = torch.cat([sums, sums.new_zeros((new, *sums.shape[1:]))])
            return longer.index_add(0, places, values.double())

        return PromptSums(
            prompt_ids=tuple(numbers),
            counts=add(self.counts, torch.ones(len(places))),
            features=add(self.features, data.features),
            scores=add(self.scores, data.scores),
        )


def no_prompts(dim: int) -> PromptSums:
    """Returns the sums of a head that has seen no annotation; `dim` is the length of z."""
    empty = torch.zeros(0, dtype=torch.float64)
    return PromptSums(prompt_ids=(), counts=empty, features=empty.new_zeros(0, dim), scores=empty)


def rows_to_add(data: AnnotatedFeatures, seen: PromptSums, effects: PromptEffects) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features [N, d] and scores [N] that update a head which has `seen` other annotations.

    The rows are innovations: the part of a prompt's effect that the earlier annotations told is subtracted, and the
    rest, of variance within x between / (within + n between), is discounted. So the updated head equals the head of
    all annotations at once (random intercepts, Fuller and Battese 1974), in whatever portions they come.
    """
    own = no_prompts(data.features.shape[1]).added(data)
    places = {name: number for number, name in enumerate(own.prompt_ids)}
    prompts = torch.tensor([places[prompt_id] for prompt_id, _ in data.keys])
    before = {name: number for number, name in enumerate(seen.prompt_ids)}
    counts, z_sums, y_sums = (torch.zeros_like(sums) for sums in (own.counts, own.features, own.scores))
    for name, place in places.items():
        if name in before:
            row = before[name]
            counts[place], z_sums[place], y_sums[place] = seen.counts[row], seen.features[row], seen.scores[row]
    share = effects.known_share(counts)
    left = effects.within * share
    total = (effects.within + own.counts * left).clamp(min=1e-12)
    shares = 1 - (effects.within / total).clamp(max=1.0).sqrt()
    z = data.features.double() - (share[:, None] * z_sums)[prompts]
    y = data.scores.double() - (share * y_sums)[prompts]
    return discount_prompt_effects(z, prompts, shares), discount_prompt_effects(y, prompts, shares)


def annotation_id(row: AnnotationRow) -> str:
    """Returns the identity of an annotation: a hash of its candidate, annotator, time and marks."""
    identity = [row["prompt_id"], row["sample_index"], row["annotator"], row.get("annotated_at"), *marks_of(row)]
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class RewardMemory:
    """Everything that a reward folder keeps of its annotations."""

    seen: PromptSums
    """Sums of the prompts that the head was corrected on."""
    calibration: AnnotatedFeatures
    """Annotations of part C's photographs."""
    report: AnnotatedFeatures
    """Annotations of part D's photographs."""
    seen_ids: frozenset[str]
    """`annotation_id` of every annotation that the reward has seen, part A's included."""

    def adding(self, data: AnnotatedFeatures, ids: Iterable[str]) -> tuple["RewardMemory", AnnotatedFeatures]:
        """Returns the memory with `data` added, and the annotations of `data` that the head may learn from."""
        for_calibration, for_report = set(self.calibration.photographs), set(self.report.photographs)
        learned = data.without(for_calibration | for_report)
        memory = RewardMemory(
            seen=self.seen.added(learned) if learned.keys else self.seen,
            calibration=self.calibration.joined(data.of(for_calibration)),
            report=self.report.joined(data.of(for_report)),
            seen_ids=self.seen_ids.union(ids),
        )
        return memory, learned

    def save(self, folder: Path) -> None:
        """Writes `memory.safetensors` and `memory.json`."""
        tensors = {"counts": self.seen.counts, "z_sums": self.seen.features, "y_sums": self.seen.scores}
        record: dict[str, object] = {"prompt_ids": self.seen.prompt_ids, "taken_in": sorted(self.seen_ids)}
        for name, part in (("calibration", self.calibration), ("report", self.report)):
            tensors |= {f"{name}_features": part.features, f"{name}_scores": part.scores}
            record[name] = {"keys": part.keys, "photographs": part.photographs}
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        atomic_write(folder / "memory.safetensors", lambda p: save_file(whole, p))
        atomic_write_json(folder / "memory.json", record)


def load_memory(folder: Path) -> RewardMemory:
    """Reads the files that `RewardMemory.save` wrote; raises UserError if they are missing or damaged."""
    try:
        record = json.loads((folder / "memory.json").read_text())
        with local_copy(folder / "memory.safetensors") as local:
            tensors = load_file(local)
        calibration, report = (
            AnnotatedFeatures(
                features=tensors[f"{name}_features"],
                scores=tensors[f"{name}_scores"],
                keys=[(prompt_id, sample) for prompt_id, sample in record[name]["keys"]],
                photographs=record[name]["photographs"],
            )
            for name in ("calibration", "report")
        )
        seen = PromptSums(
            prompt_ids=tuple(record["prompt_ids"]),
            counts=tensors["counts"],
            features=tensors["z_sums"],
            scores=tensors["y_sums"],
        )
        seen_ids = frozenset(record["taken_in"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: keeps no annotations to add to ({error}); fit it anew with `rlhf reward` of this version"
        ) from error
    return RewardMemory(seen=seen, calibration=calibration, report=report, seen_ids=seen_ids)
