"""The actor that runs diffusion trajectories."""

import time

import ray
import torch

from actors.messages import RolloutReceipt, RolloutTask, WeightsNotice
from rlhf.config import RunConfig
from rlhf.policy import checksum, load_policy, load_trainable_state, make_trainable, trainable_state
from rlhf.prompts import Prompt
from rlhf.rollout import Trajectories, rollout


class RolloutSampler:
    """Holds a copy of the policy. Waits for tasks; each carries the weights it must be run with."""

    def __init__(self, config: RunConfig, prompts: dict[str, Prompt]) -> None:
        torch.set_num_threads(config.cluster.threads_per_sampler)
        self.policy = load_policy(config.model)
        align = config.align
        make_trainable(self.policy, align.trainable, rank=align.lora_rank, targets=align.lora_targets, seed=config.seed)
        self._prompts = prompts
        self._version = -1
        self._checksum = ""

    def load_weights(self, notice: WeightsNotice) -> tuple[int, str]:
        """Take over the published weights, unless they are held already.

        Returns (version, checksum) as acknowledgement; the checksum is that of the UNet itself.
        """
        if self._version != notice.version:
            load_trainable_state(self.policy.unet, ray.get(notice.weights[0]))
            self._version = notice.version
            self._checksum = checksum(trainable_state(self.policy.unet))
        return self._version, self._checksum

    def rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, Trajectories]:
        """Run a task with the given weights; called with num_returns=2, so only the receipt travels."""
        started = time.perf_counter()
        version, held = self.load_weights(notice)
        trajectories = rollout(
            self.policy,
            [self._prompts[i] for i in task.prompt_ids],
            task.plan,
            sample_indices=range(task.samples_per_prompt),
            seed_key=task.seed_key,
        )
        receipt = RolloutReceipt(
            prompt_ids=task.prompt_ids, version=version, checksum=held, duration_s=time.perf_counter() - started
        )
        return receipt, trajectories
