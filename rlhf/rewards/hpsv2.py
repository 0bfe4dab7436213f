"""HPSv2: CLIP ViT-H fine-tuned on people's preferences (arXiv:2306.09341); its score is the plain cosine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.clip_score import ClipScore, load_clip_score
from rlhf.rewards.opening import Opening
from rlhf.rewards.packages import import_package
from rlhf.rewards.scores import Scores, texts_of
from rlhf.storage.images import tensor_to_image
from rlhf.storage.tensor_files import tensors_only

VERSION = "v2.1"


@dataclass(frozen=True, kw_only=True)
class Hpsv2Package:
    """Published weights in open_clip's layout, used through the package `hpsv2`, which loads them at each call."""

    name: str
    package: Any
    text: str | None

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images by their texts; shapes as in Reward. Raises UserError if an image has no text."""
        texts = texts_of(captions, self.text, self.name)
        reward = torch.full((len(images),), torch.nan, dtype=torch.float64)
        for text in sorted(set(texts)):
            rows = [index for index, other in enumerate(texts) if other == text]
            pictures = [tensor_to_image(images[index]) for index in rows]
            reward[rows] = torch.tensor(self._mark(pictures, text)).double()
        return Scores(reward=reward)

    def _mark(self, pictures: list, text: str) -> list[float]:
        try:
            with tensors_only():
                return [float(mark) for mark in self.package.score(pictures, text, hps_version=VERSION)]
        except UnpicklingError as error:
            raise UserError(f"reward {self.name}: its weights hold more than tensors; download them again") from error


def open_entry(entry: RewardEntry, opening: Opening) -> ClipScore | Hpsv2Package:
    """Opens weights converted to a CLIPModel (a folder or hub repository); without `path`, the package `hpsv2`."""
    if entry.path is not None:
        return load_clip_score(entry.path, entry.label, opening.device, scale=1.0, text=entry.text)
    remedy = "or set `path` to the weights converted to a transformers CLIPModel"
    package = import_package("hpsv2", "hpsv2", entry.label, remedy)
    return Hpsv2Package(name=entry.label, package=package, text=entry.text)
