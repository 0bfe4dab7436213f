"""The actor that samples: it runs diffusion trajectories."""

import time
from contextlib import nullcontext

import ray
import torch

from actors.messages import RolloutReceipt, RolloutTask
from actors.weight_sync import WeightsAck, WeightsNotice
from rlhf.alignment.profiling import profiled
from rlhf.alignment.sleeping import Sleeper
from rlhf.alignment.utilisation import device_rate, peak_memory
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import decode_prompt
from rlhf.diffusion.families.pipeline_folder import PAINTING
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.policy import Policy, keeps_merged, load_policy, make_trainable, update_merged
from rlhf.diffusion.probe import probe_log_prob
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.sampler import to_png
from rlhf.diffusion.trained_weights import checksum_trained, load_arrays
from rlhf.diffusion.trajectories import Recording, Rollout
from rlhf.storage.images import to_8bit


class RolloutSampler:
    """Holds a copy of the policy; receives weights, and then tasks to sample with them."""

    def __init__(self, config: RunConfig, texts: TextCache | None = None) -> None:
        """Opens the policy; prompts with captions need the cache `texts`."""
        torch.set_num_threads(config.cluster.threads_per_sampler)
        self._align = config.align
        self.policy = self.open_policy(config, texts)
        self._device_flops = device_rate(config.cluster, self.policy)
        self._sleeper = Sleeper(self.policy)
        self._version = -1
        self._checksum = ""

    @staticmethod
    def open_policy(config: RunConfig, texts: TextCache | None) -> Policy:
        """Returns the policy with weights that others will replace."""
        align = config.align
        holds_float = align.trainable == "full" and config.cluster.weights_in == "fp32"
        policy = load_policy(config.model, parts=PAINTING, is_trained_whole=holds_float, texts=texts)
        make_trainable(
            policy,
            align.trainable,
            rank=align.lora_rank,
            targets=align.lora_targets,
            seed=config.seed,
            keeps_merged=keeps_merged(policy, align.merged_sampling),
        )
        return policy

    def sleep(self) -> None:
        """Frees the GPU until the next call."""
        self._sleeper.sleep()

    def load_weights(self, notice: WeightsNotice) -> WeightsAck:
        """Loads the published weights and returns the proof that the network holds them."""
        self._sleeper.wake()
        for chunk in notice.weights:  # Each leaves this process before the next one comes.
            load_arrays(self.policy.network, ray.get(chunk), self.policy.precision)
        update_merged(self.policy)
        self._version = notice.version
        self._checksum = checksum_trained(self.policy.network)
        probe = None if notice.probe is None else probe_log_prob(self.policy, self._align)
        return WeightsAck(version=self._version, checksum=self._checksum, probe=probe)

    def rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, torch.Tensor, Recording]:
        """Samples a task; returns receipt, images (uint8 [B, 3, H, W]) and trajectories.

        Callers set num_returns=3, so only the receipt travels.
        """
        receipt, done = self._run(notice, task)
        return receipt, to_8bit(done.images), done.trajectories

    def paint(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, list[bytes], None]:
        """Samples a task like `rollout`; returns receipt, images as PNG and no trajectories."""
        receipt, done = self._run(notice, task)
        return receipt, to_png(done.images), None

    def _run(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, Rollout]:
        started = time.perf_counter()
        self._sleeper.wake()
        if self._version != notice.version:
            self.load_weights(notice)
        rows = ray.get(task.prompts[0])
        with nullcontext() if task.trace is None else profiled(*task.trace):
            done = rollout(
                self.policy,
                [decode_prompt(rows[name]) for name in task.prompt_ids],
                task.plan,
                sample_indices=range(task.first_sample, task.first_sample + task.samples_per_prompt),
                seed_key=task.seed_key,
            )
        receipt = RolloutReceipt(
            prompt_ids=task.prompt_ids,
            version=self._version,
            checksum=self._checksum,
            duration_s=time.perf_counter() - started,
            forward_images=done.forward_images,
            memory_bytes=peak_memory(self.policy.device),
            device_flops=self._device_flops,
        )
        return receipt, done
