"""The actor that scores finished images and says how far each reward can be trusted."""

from pathlib import Path

import torch

from actors.messages import RolloutReceipt, Scores
from rlhf.config import RunConfig
from rlhf.prompts import Prompt
from rlhf.reward_model import load_reward
from rlhf.rollout import Trajectories


class RewardScorer:
    """Holds the reward model. Waits for trajectories; returns numbers."""

    def __init__(self, config: RunConfig, reward: Path, prompts: dict[str, Prompt]) -> None:
        torch.set_num_threads(config.cluster.threads_per_sampler)
        self._model = load_reward(reward)
        self._prompts = prompts

    def score(self, receipt: RolloutReceipt, trajectories: Trajectories) -> Scores:
        """Score a task's images; both arguments arrive as references of the sampler's results."""
        samples = len(trajectories.images) // len(receipt.prompt_ids)
        masks = torch.stack([self._prompts[i].mask for i in receipt.prompt_ids]).repeat_interleave(samples, dim=0)
        scored = self._model.score(trajectories.images, masks)
        return Scores(reward=scored.reward, uncertainty=scored.uncertainty, trust_weight=scored.trust_weight)
