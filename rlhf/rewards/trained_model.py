"""A reward folder: the one kind that bounds its own error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.errors import UserError
from rlhf.rewards.learned.reward_model import Reward
from rlhf.rewards.scores import Scores


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """Score, uncertainty and trust weight of a reward folder."""

    model: Reward
    trust: str = "proper"
    """`release` takes the weight of the released norm, anything else that of the proper one."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Shapes as in RewardSource; `is_outlying` is None where the folder holds no calibrated quantile.

        Raises UserError where the weight of the released norm is wanted, and the folder does not know its median.
        """
        scored = self.model.score(images, masks)
        weight = scored.release_weight if self.trust == "release" else scored.trust_weight
        if weight is None:
            raise UserError("align.trust is `release`, whose median this reward folder lacks; run `rlhf reward` again")
        return Scores(
            reward=scored.reward,
            uncertainty=scored.uncertainty,
            trust_weight=weight,
            width=scored.upper - scored.reward,
            is_outlying=scored.is_outlying,
        )
