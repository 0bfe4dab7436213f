"""Judges filled holes: the training reward, held-out judges, looks, and the distance from the original."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from rlhf.data.gold_judge import gold_utility
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.evaluation.feature_distances import PictureDistance
from rlhf.evaluation.hole_measures import (
    FIDELITY,
    LOOKS,
    measure_diversity,
    measure_fidelity,
    measure_looks,
    seam_band,
    to_arrays,
)
from rlhf.evaluation.network_judge import NAME
from rlhf.rewards.scores import Reward
from rlhf.storage.images import encode_png, from_8bit

MARKS = ("reward", "uncertainty", "lower", "gold", *LOOKS, *FIDELITY)
"""Marks of every image; `lower` is the training reward's conformal lower bound."""
JUDGE = "judge_"
"""Prefix of the marks of further held-out judges, which tells them from the measures."""
NETWORK_DISTANCE = "network_distance"
"""Mark of the distance from the original in the held-out network's features, mean over the hole."""
LPIPS, LPIPS_SEAM = "lpips", "lpips_seam"
"""LPIPS against the original: mean over the hole, and over the band across its border."""


@dataclass(frozen=True, kw_only=True)
class Jury:
    """Judges besides the gold judge."""

    reward: Reward
    """Reward on which policies were trained."""
    judges: Mapping[str, Reward] = field(default_factory=dict)
    """Held-out judges, on which nothing was trained."""
    lpips: PictureDistance | None = None
    """LPIPS, or None if its weights are missing."""
    distance: PictureDistance | None = None
    """Distance in the held-out network's features, or None if its package is not installed."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of all marks of an image."""
        lpips = () if self.lpips is None else (LPIPS, LPIPS_SEAM)
        distance = () if self.distance is None else (NETWORK_DISTANCE,)
        return (*MARKS, *lpips, *distance, *(JUDGE + name for name in self.judges))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Judged samples of one contestant: rows are prompts, columns samples."""

    prompt_ids: tuple[str, ...]
    images: Sequence[torch.Tensor]
    """uint8 [S, 3, H, W] of each prompt."""
    marks: Mapping[str, np.ndarray]
    """float64 [P, S] by the names of `Jury.marks`; NaN stands for no value."""
    diversity: np.ndarray
    """[P]: mean absolute difference of a prompt's samples inside the hole, in levels of 255; NaN for one sample."""
    hole_share: np.ndarray
    """[P]: share of the picture's pixels."""
    known_pixels_differ: int
    """Number of pixels outside the holes that differ from the prompt's; 0 for every model painted here."""

    @property
    def samples(self) -> int:
        """Number of samples of each prompt."""
        return len(self.images[0])

    @property
    def reward(self) -> np.ndarray:
        """Marks of the training reward."""
        return self.marks["reward"]

    @property
    def uncertainty(self) -> np.ndarray:
        """Uncertainty of the training reward."""
        return self.marks["uncertainty"]

    @property
    def gold(self) -> np.ndarray:
        """Utility by the gold judge."""
        return self.marks["gold"]

    @property
    def sharpness(self) -> np.ndarray:
        """Sharpness inside the hole."""
        return self.marks["sharpness"]

    @property
    def held_out(self) -> list[str]:
        """Names of the marks of held-out judges."""
        return ["gold", *(name for name in self.marks if name.startswith(JUDGE))]

    def select(self, prompt_ids: Sequence[str]) -> "Judged":
        """Returns the samples of some prompts, in that order; `known_pixels_differ` still counts all prompts."""
        places = [self.prompt_ids.index(name) for name in prompt_ids]
        return Judged(
            prompt_ids=tuple(prompt_ids),
            images=[self.images[place] for place in places],
            marks={name: values[places] for name, values in self.marks.items()},
            diversity=self.diversity[places],
            hole_share=self.hole_share[places],
            known_pixels_differ=self.known_pixels_differ,
        )


def judge_images(images: torch.Tensor, prompts: Sequence[Prompt], jury: Jury) -> Judged:
    """Marks the images uint8 [P, S, 3, H, W] of P prompts of one size.

    Raises UserError with the prompt's name if a judge gives no finite number.
    """
    samples = images.shape[1]
    each = [prompt for prompt in prompts for _ in range(samples)]
    originals, masks = (torch.stack([getattr(prompt, name) for prompt in each]) for name in ("image", "mask"))
    filled = from_8bit(images.flatten(0, 1))
    captions = [prompt.caption for prompt in each]
    scored = jury.reward.score(filled, masks, captions)
    columns = {"reward": scored.reward}
    if scored.uncertainty is not None and scored.width is not None:
        columns |= {"uncertainty": scored.uncertainty, "lower": scored.lower}
    for name, judge in jury.judges.items():
        columns[JUDGE + name] = judge.score(filled, masks, captions).reward
    columns["gold"] = gold_utility(filled, masks).overall
    for name, column in columns.items():
        if not bool(column.isfinite().all()):
            place = each[int((~column.isfinite()).nonzero()[0])].prompt_id
            raise UserError(
                f"evaluate: {name.removeprefix(JUDGE)} gives prompt {place} no finite number; mend or drop it"
            )
    if scored.width is None:
        columns |= dict.fromkeys(("uncertainty", "lower"), torch.full_like(scored.reward, torch.nan))
    if jury.lpips is not None:
        distances = jury.lpips(filled, originals[::samples])
        for name, where in ((LPIPS, masks), (LPIPS_SEAM, seam_band(masks))):
            columns[name] = _mean_over(where, distances)
    if jury.distance is not None:
        columns[NETWORK_DISTANCE] = _mean_over(masks, jury.distance(filled, originals[::samples]))
    columns |= measure_looks(filled, masks) | measure_fidelity(filled, originals, masks)
    return Judged(
        prompt_ids=tuple(prompt.prompt_id for prompt in prompts),
        images=list(images),
        marks={name: column.reshape(-1, samples) for name, column in to_arrays(columns).items()},
        diversity=measure_diversity(filled.unflatten(0, (-1, samples)), masks[::samples]).numpy(),
        hole_share=masks[::samples].mean((1, 2, 3)).double().numpy(),
        known_pixels_differ=int(((filled != originals).any(1, keepdim=True) & (masks < 0.5)).sum()),
    )


def _mean_over(where: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    return (distances * where).sum((1, 2, 3)) / where.sum((1, 2, 3))


def join_judged(parts: Iterable[Judged]) -> Judged:
    """Joins parts of consecutive prompts."""
    found = list(parts)
    return Judged(
        prompt_ids=tuple(name for part in found for name in part.prompt_ids),
        images=[image for part in found for image in part.images],
        marks={name: np.concatenate([part.marks[name] for part in found]) for name in found[0].marks},
        diversity=np.concatenate([part.diversity for part in found]),
        hole_share=np.concatenate([part.hole_share for part in found]),
        known_pixels_differ=sum(part.known_pixels_differ for part in found),
    )


def describe_judge(judge: str) -> str:
    """Returns the name of a held-out judge for a reader."""
    names = {"gold": "the gold judge (simulated)", JUDGE + NAME: "the held-out network (ResNet-50)"}
    return names.get(judge, judge.removeprefix(JUDGE))


def encode_picture(picture: torch.Tensor) -> bytes:
    """Encodes a picture, uint8 [3, H, W], as PNG."""
    return encode_png(Image.fromarray(picture.permute(1, 2, 0).numpy()))
