"""Actors that take a GPU's time without computing; everything that they receive and return is real in kind and size.

Importing this imports no torch, so that many of them fit on a small machine.
"""

import pickle
import random
import threading
import time
from dataclasses import dataclass

import numpy as np
import ray

from actors.messages import RolloutReceipt, RolloutTask, WeightsAck, WeightsNotice
from rlhf.diffusion.trajectories import Trajectories
from rlhf.storage.checksum import checksum


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long the stand-ins take, and how large their images are."""

    batch_s: float
    """Mean of a micro-batch's sampling."""
    jitter: float
    """A micro-batch takes up to this share more or less, by its prompts."""
    score_s: float
    """Of a micro-batch's scoring."""
    edge_px: int


def batch_seconds(pace: Pace, update: int, prompt_ids: tuple[str, ...]) -> float:
    """How long a stand-in samples a micro-batch, which nobody can do faster."""
    share = random.Random(f"{update} {prompt_ids}").uniform(-1, 1)
    return pace.batch_s * (1 + pace.jitter * share)


class StandInSampler:
    """Loads and proves weights as a sampler does, on the CPU; then sleeps instead of denoising.

    One process may stand in for several samplers, a thread each; they share the weights, which are loaded once.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace, self._version, self._checksum = pace, -1, ""
        self._state: dict[str, np.ndarray] = {}
        self._loading = threading.Lock()

    def load_weights(self, notice: WeightsNotice) -> WeightsAck:
        """Copy the weights into those held, as a sampler does, and compute the checksum of the copy."""
        with self._loading:
            if self._version != notice.version:
                for name, array in ray.get(notice.weights[0]).items():
                    np.copyto(self._state.setdefault(name, np.empty_like(array)), array)
                self._version, self._checksum = notice.version, checksum(self._state)
        return WeightsAck(version=self._version, checksum=self._checksum, probe=notice.probe)

    def rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, np.ndarray, Trajectories]:
        """Sleep for the time of a micro-batch; images and trajectories of its shapes."""
        started = time.perf_counter()
        rows = ray.get(task.prompts[0])
        assert all(rows[name]["image"]["bytes"] for name in task.prompt_ids)
        time.sleep(batch_seconds(self._pace, task.seed_key[-1], task.prompt_ids))
        count, steps = len(task.prompt_ids) * task.samples_per_prompt, len(task.plan.trained_steps)
        edge, latent = self._pace.edge_px, self._pace.edge_px // 8
        trajectories = Trajectories(
            condition=np.ones((count, 5, latent, latent), np.float32),
            latent_mask=np.ones((count, 1, latent, latent), np.float32),
            latents=np.ones((steps, count, 4, latent, latent), np.float32),
            next_latents=np.ones((steps, count, 4, latent, latent), np.float32),
            old_log_prob=np.ones((steps, count), np.float32),
            step_indices=task.plan.trained_steps,
        )
        receipt = RolloutReceipt(
            prompt_ids=task.prompt_ids,
            version=self._version,
            checksum=self._checksum,
            duration_s=time.perf_counter() - started,
            forward_images=0,
        )
        return receipt, np.ones((count, 3, edge, edge), np.uint8), trajectories


class StandInScorer:
    """Receives images and prompts as a scorer does; then sleeps."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def score(self, task: RolloutTask, images: np.ndarray) -> dict:
        """Rewards with a bound, drawn by prompt."""
        import torch

        from rlhf.rewards.scores import Scores

        rows = ray.get(task.prompts[0])
        assert all(name in rows for name in task.prompt_ids)
        assert len(images) == len(task.prompt_ids) * task.samples_per_prompt
        time.sleep(self._pace.score_s)
        reward = torch.randn(len(images), generator=torch.Generator().manual_seed(len(pickle.dumps(task.prompt_ids))))
        trust = torch.ones(len(images)).double()
        return {"model": Scores(reward=reward.double(), uncertainty=trust, trust_weight=trust, is_outlying=trust > 1)}
