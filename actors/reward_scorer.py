"""The actor that scores finished images and says how far each reward can be trusted."""

from pathlib import Path

import torch

from actors.messages import RolloutReceipt
from rlhf.config import RunConfig
from rlhf.devices import resolve_device
from rlhf.errors import UserError
from rlhf.prompts import Prompt
from rlhf.rewards.build import build_rewards
from rlhf.rewards.scores import Scores
from rlhf.rollout import Trajectories


class RewardScorer:
    """Holds the rewards. Waits for trajectories; returns numbers."""

    def __init__(self, config: RunConfig, reward: Path | None, prompts: dict[str, Prompt]) -> None:
        torch.set_num_threads(config.cluster.threads_per_sampler)
        self._rewards = build_rewards(config.rewards, reward, resolve_device(config.model.device))
        self._prompts = prompts

    def score(self, receipt: RolloutReceipt, trajectories: Trajectories) -> dict[str, Scores]:
        """Score a task's images by every reward; both arguments arrive as references of the sampler's results.

        Raises UserError with the prompts and the reward where one fails.
        """
        samples = len(trajectories.images) // len(receipt.prompt_ids)
        prompts = [self._prompts[i] for i in receipt.prompt_ids]
        masks = torch.stack([p.mask for p in prompts]).repeat_interleave(samples, dim=0)
        captions = [p.caption for p in prompts for _ in range(samples)]
        verdicts = {}
        for name, reward in self._rewards.items():
            try:
                verdicts[name] = reward.score(trajectories.images, masks, captions)
            except UserError as error:
                of = ", ".join(receipt.prompt_ids)
                raise UserError(f"align: {error}; the update is refused (prompts {of}, reward {name})") from error
        return verdicts
