"""ImageReward: BLIP fine-tuned on people's rankings (arXiv:2304.05977), through its package `image-reward`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.errors import UserError
from rlhf.rewards.packages import import_package
from rlhf.rewards.scores import Scores, texts_of
from rlhf.storage.images import tensor_to_image

PUBLISHED = "ImageReward-v1.0"


@dataclass(frozen=True, kw_only=True)
class ImageReward:
    """BLIP reads the text while it looks at the image; a small network turns that into a score."""

    name: str
    model: Any
    text: str | None

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Shapes as in RewardSource; UserError where a caption is empty and no text is set."""
        texts = texts_of(captions, self.text, self.name)
        pairs = zip(images, texts, strict=True)
        marks = [float(self.model.score(text, tensor_to_image(image))) for image, text in pairs]
        return Scores(reward=torch.tensor(marks, dtype=torch.float64))


def load_image_reward(path: str | None, name: str, device: torch.device, text: str | None) -> ImageReward:
    """The published weights, or a checkpoint file of theirs at `path`."""
    remedy = "or, where its old dependencies stand against it, run it in an environment of its own behind kind `http`"
    package = import_package("ImageReward", "image-reward", name, remedy)
    try:
        model = package.load(path or PUBLISHED, device=str(device))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward {name}: {path or PUBLISHED}: could not be loaded ({reason})") from error
    return ImageReward(name=name, model=model, text=text)
