"""Seam reward: penalises steps across the hole's border that the photograph beside it does not have."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rlhf.config.reward_entry import RewardEntry
from rlhf.rewards.opening import Opening
from rlhf.rewards.scores import Scores

DIRECTIONS = ((-1, False), (-1, True), (-2, False), (-2, True))
"""Dimension of a walk from the known side into the hole, and whether it goes backwards."""


@dataclass(frozen=True, kw_only=True)
class Seam:
    """Minus the mean excess of the gradient across the border; 0 is best, in units of images in [-1, 1]."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images; captions are not read. Shapes as in Reward; NaN for a mask without a border.

        At each pair of neighbours p (known) and q (repainted), the step from p to q is compared with the step to p
        from the known pixel before it (0 if there is none), and only the excess counts. The policy cannot change
        the photograph's own step, and a smaller step earns nothing, so neither noise nor a flat rim pays.
        """
        total, count = images.new_zeros(len(images)), images.new_zeros(len(images))
        for dim, is_backwards in DIRECTIONS:
            excess, border = _excess(*(_walk(x, dim, is_backwards) for x in (images, masks)))
            total, count = total + (excess * border).sum((1, 2, 3)), count + border.sum((1, 2, 3))
        return Scores(reward=-(total / count).double())


def open_entry(entry: RewardEntry, opening: Opening) -> Seam:
    """Returns the seam reward, which needs no weights."""
    return Seam()


def _walk(values: torch.Tensor, dim: int, is_backwards: bool) -> torch.Tensor:
    """Turns the pixels so that the walk goes forward along the last dimension."""
    values = values.flip(dim) if is_backwards else values
    return values.transpose(-1, -2) if dim == -2 else values


def _excess(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns by how much each step exceeds the one before it, and 1 for steps across the border; [B, 1, h, w - 1]."""
    hole = (masks > 0.5).to(images.dtype)
    steps = images.diff(dim=-1).abs().mean(1, keepdim=True)
    border = (1 - hole[..., :-1]) * hole[..., 1:]
    before = F.pad(steps * (1 - hole[..., :-1]), (1, 0))[..., :-1]
    return (steps - before).clamp(min=0), border
