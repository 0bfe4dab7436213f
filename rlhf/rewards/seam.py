"""The seam: steps across the hole's border that the photograph beside it does not have. Needs no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rlhf.rewards.scores import Scores

DIRECTIONS = ((-1, False), (-1, True), (-2, False), (-2, True))
"""Dimension, and whether it is walked backwards: from the known side into the hole."""


@dataclass(frozen=True, kw_only=True)
class Seam:
    """Minus the mean excess of the gradient across the border; 0 is best, images are 2 wide."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Shapes as in RewardSource; NaN where a mask has no border.

        At each pair of neighbours p (known) and q (repainted), q's step from p counts as far as it exceeds
        p's step from the known pixel before it (0 where there is none). That step is not the policy's to
        change, and a smaller one earns nothing, so neither noise nor a flat rim pays.
        """
        total, count = images.new_zeros(len(images)), images.new_zeros(len(images))
        for dim, is_backwards in DIRECTIONS:
            excess, border = _excess(*(_walk(x, dim, is_backwards) for x in (images, masks)))
            total, count = total + (excess * border).sum((1, 2, 3)), count + border.sum((1, 2, 3))
        return Scores(reward=-(total / count).double())


def _walk(values: torch.Tensor, dim: int, is_backwards: bool) -> torch.Tensor:
    """The same pixels, so that the walk goes along the last dimension."""
    values = values.flip(dim) if is_backwards else values
    return values.transpose(-1, -2) if dim == -2 else values


def _excess(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 1, h, w - 1]: by how much each step exceeds the one before it, and 1 where it crosses the border."""
    hole = (masks > 0.5).to(images.dtype)
    steps = images.diff(dim=-1).abs().mean(1, keepdim=True)
    border = (1 - hole[..., :-1]) * hole[..., 1:]
    before = F.pad(steps * (1 - hole[..., :-1]), (1, 0))[..., :-1]
    return (steps - before).clamp(min=0), border
