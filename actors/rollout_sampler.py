"""The actor that runs diffusion trajectories."""

import time

import ray
import torch

from actors.messages import RolloutReceipt, RolloutTask, WeightsAck, WeightsNotice
from rlhf.canary import canary_log_prob
from rlhf.config import RunConfig
from rlhf.policy import checksum, load_policy, load_trainable_state, make_trainable, trainable_state
from rlhf.rollout import Trajectories, rollout
from rlhf.sampling import to_png


class RolloutSampler:
    """Holds a copy of the policy. Waits for weights, then for tasks to be run with them."""

    def __init__(self, config: RunConfig) -> None:
        torch.set_num_threads(config.cluster.threads_per_sampler)
        self.policy, self._align = load_policy(config.model), config.align
        align = config.align
        make_trainable(self.policy, align.trainable, rank=align.lora_rank, targets=align.lora_targets, seed=config.seed)
        self._version = -1
        self._checksum = ""

    def load_weights(self, notice: WeightsNotice) -> WeightsAck:
        """Take over the published weights, and prove what the UNet then holds."""
        load_trainable_state(self.policy.unet, ray.get(notice.weights[0]))
        self._version = notice.version
        self._checksum = checksum(trainable_state(self.policy.unet))
        canary = None if notice.canary is None else canary_log_prob(self.policy, self._align)
        return WeightsAck(version=self._version, checksum=self._checksum, canary=canary)

    def rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, Trajectories]:
        """Run a task with the weights held; called with num_returns=2, so only the receipt travels."""
        started = time.perf_counter()
        if self._version != notice.version:
            self.load_weights(notice)
        prompts = ray.get(task.prompts[0])
        trajectories = rollout(
            self.policy,
            [prompts[name] for name in task.prompt_ids],
            task.plan,
            sample_indices=range(task.first_sample, task.first_sample + task.samples_per_prompt),
            seed_key=task.seed_key,
        )
        receipt = RolloutReceipt(
            prompt_ids=task.prompt_ids,
            version=self._version,
            checksum=self._checksum,
            duration_s=time.perf_counter() - started,
        )
        return receipt, trajectories

    def paint(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, list[bytes]]:
        """`rollout`, of which only the images are kept, as PNG: a hundredth of the bytes, encoded where they arise."""
        receipt, trajectories = self.rollout(notice, task)
        return receipt, to_png(trajectories.images)
