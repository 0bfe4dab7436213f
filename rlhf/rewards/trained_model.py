"""A reward folder: the one kind that bounds its own error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.reward_model import Reward
from rlhf.rewards.scores import Scores


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """Score, uncertainty and trust weight of a reward folder."""

    model: Reward

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Shapes as in RewardSource; `is_outlying` is None where the folder holds no calibrated quantile."""
        scored = self.model.score(images, masks)
        return Scores(
            reward=scored.reward,
            uncertainty=scored.uncertainty,
            trust_weight=scored.trust_weight,
            is_outlying=scored.is_outlying,
        )
