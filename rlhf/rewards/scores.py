"""Protocol that every reward fulfils, and the record that it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rlhf.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of B images. Only rewards with a bound on their error fill more than the first field."""

    reward: torch.Tensor
    """float64 [B]. Higher is better; the unit is the reward's own."""
    uncertainty: torch.Tensor | None = None
    """float64 [B], in units of the reward."""
    trust_weight: torch.Tensor | None = None
    """float64 [B], not divided by its mean."""
    width: torch.Tensor | None = None
    """float64 [B], conformal multiplier x uncertainty: half the width of the bound on the reward's error.
    Infinite if nothing has calibrated the reward."""
    is_outlying: torch.Tensor | None = None
    """bool [B], True if the uncertainty exceeds its calibrated quantile."""

    @property
    def lower(self) -> torch.Tensor:
        """Lower end of the bound, reward - width: float64 [B], NaN for a reward without a bound."""
        return self.reward - self._known_width()

    @property
    def upper(self) -> torch.Tensor:
        """Upper end of the bound, reward + width: float64 [B], NaN for a reward without a bound."""
        return self.reward + self._known_width()

    def _known_width(self) -> torch.Tensor:
        return torch.full_like(self.reward, torch.nan) if self.width is None else self.width


class Reward(Protocol):
    """Anything that scores inpaintings: alignment climbs it, serving ranks by it, evaluation judges with it."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores B inpaintings. A reward that is not finite means that the image could not be scored.

        Shapes: images [B, 3, H, W] in [-1, 1]; masks [B, 1, H, W], 1 = repainted; B captions, "" if there is none.

        Raises UserError if the batch cannot be scored.
        """


def texts_of(captions: Sequence[str], text: str | None, name: str) -> list[str]:
    """Returns the text to compare each image with: the fixed `text` if there is one, else the image's caption.

    Raises UserError if a caption is empty and no text is fixed.
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
