"""ImageReward: BLIP fine-tuned on people's rankings (arXiv:2304.05977), through its package `image-reward`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.opening import Opening
from rlhf.rewards.packages import import_package
from rlhf.rewards.scores import Scores, texts_of
from rlhf.storage.images import tensor_to_image
from rlhf.storage.tensor_files import tensors_only

PUBLISHED = "ImageReward-v1.0"


@dataclass(frozen=True, kw_only=True)
class ImageReward:
    """BLIP encodes image and text together; a small network turns the encoding into a score."""

    name: str
    model: Any
    text: str | None

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images by their texts; shapes as in Reward. Raises UserError if an image has no text."""
        texts = texts_of(captions, self.text, self.name)
        pairs = zip(images, texts, strict=True)
        marks = [float(self.model.score(text, tensor_to_image(image))) for image, text in pairs]
        return Scores(reward=torch.tensor(marks, dtype=torch.float64))


def open_entry(entry: RewardEntry, opening: Opening) -> ImageReward:
    """Opens the published weights, or the checkpoint file at the entry's `path`."""
    name, weights = entry.label, entry.path or PUBLISHED
    remedy = "or, if its old dependencies conflict, run it in an environment of its own behind kind `http`"
    package = import_package("ImageReward", "image-reward", name, remedy)
    try:
        with tensors_only():
            model = package.load(weights, device=str(opening.device))
    except (OSError, RuntimeError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward {name}: {weights}: could not be loaded ({reason})") from error
    return ImageReward(name=name, model=model, text=entry.text)
