"""What a reward says of a batch, and what all kinds of reward have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A verdict on B images; only rewards with a bound fill more than the first field."""

    reward: torch.Tensor
    """float64 [B]."""
    uncertainty: torch.Tensor | None = None
    """float64 [B], in units of the reward."""
    trust_weight: torch.Tensor | None = None
    """float64 [B], not divided by its mean."""
    width: torch.Tensor | None = None
    """float64 [B]: conformal multiplier x uncertainty, which the reward's error exceeds with a stated probability;
    infinite where nothing has calibrated it."""
    is_outlying: torch.Tensor | None = None
    """bool [B]: the uncertainty lies beyond its calibrated quantile."""


class RewardSource(Protocol):
    """One kind of reward, ready to score."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Images [B, 3, H, W] in [-1, 1]; masks [B, 1, H, W], 1 = repainted; B captions, "" where there is none.

        Raises UserError where it cannot score; a value that is not finite means the same for one image.
        """


def texts_of(captions: Sequence[str], text: str | None, name: str) -> list[str]:
    """The text of each image: `text` where it is set, else its caption.

    Raises UserError where a caption is empty: an image cannot be compared with nothing.
    """
    if text is not None:
        return [text] * len(captions)
    for index, caption in enumerate(captions):
        if not caption.strip():
            raise UserError(
                f"reward {name}: compares images with texts, but caption {index} of {len(captions)} is empty; "
                f"write captions into the prompts, or set a fixed `text` for {name}"
            )
    return list(captions)
