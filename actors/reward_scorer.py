"""The actor that scores images and states how far each reward can be trusted."""

from pathlib import Path

import ray
import torch

from actors.messages import RolloutTask, ScoreReceipt
from rlhf.alignment.sleeping import Sleeper
from rlhf.alignment.utilisation import peak_memory
from rlhf.config.devices import resolve_device
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import decode_prompt
from rlhf.errors import UserError
from rlhf.rewards.open_reward import build_rewards
from rlhf.rewards.scores import Scores
from rlhf.storage.images import from_8bit


class RewardScorer:
    """Holds the rewards."""

    def __init__(self, config: RunConfig, reward: Path | None) -> None:
        torch.set_num_threads(config.cluster.threads_per_sampler)
        self._device = resolve_device(config.model.device)
        self._rewards = build_rewards(config.rewards, reward, self._device, trust=config.align.trust)
        self._sleeper = Sleeper(self._rewards)

    def sleep(self) -> None:
        """Frees the GPU until the next call."""
        self._sleeper.sleep()

    def score(self, task: RolloutTask, images: torch.Tensor) -> ScoreReceipt:
        """Scores a task's images, uint8 [B, 3, H, W], by every reward; Ray fetches them from the sampler's node.

        Raises UserError with the prompts and the reward if one fails.
        """
        self._sleeper.wake()
        rows = ray.get(task.prompts[0])
        prompts = [decode_prompt(rows[name]) for name in task.prompt_ids]
        samples = task.samples_per_prompt
        masks = torch.stack([p.mask for p in prompts]).repeat_interleave(samples, dim=0)
        captions = [p.caption for p in prompts for _ in range(samples)]
        scores: dict[str, Scores] = {}
        for name, reward in self._rewards.items():
            try:
                scores[name] = reward.score(from_8bit(images), masks, captions)
            except UserError as error:
                names = ", ".join(task.prompt_ids)
                raise UserError(f"align: {error}; the update is refused (prompts {names}, reward {name})") from error
        return ScoreReceipt(scores=scores, memory_bytes=peak_memory(self._device))
