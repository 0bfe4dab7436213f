"""Stand-ins for samplers and scorers, which take the time of a GPU without computing.

Their data has real types and sizes. This module does not import torch, so a small machine holds many of them.
"""

import pickle
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray

from actors.messages import RolloutReceipt, RolloutTask, ScoreReceipt
from actors.weight_sync import WeightsAck, WeightsNotice
from rlhf.alignment.planning.idle_shares import jitter
from rlhf.diffusion.trajectories import Trajectories
from rlhf.storage.checksum import quick_checksum


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The pace of the stand-ins, and the size of their images."""

    batch_s: float
    """Mean time to sample a micro-batch, in seconds."""
    jitter: float
    """Largest deviation from that mean, as a share; it depends on the prompts."""
    score_s: float
    """Time to score a micro-batch, in seconds."""
    edge_px: int


def batch_seconds(pace: Pace, update: object, prompt_ids: tuple[str, ...]) -> float:
    """Returns the time that a stand-in takes to sample a micro-batch, in seconds."""
    return pace.batch_s * jitter(pace.jitter, update, prompt_ids)


class StandInSampler:
    """Loads and proves weights like a sampler, on the CPU; sleeps instead of denoising.

    One process may stand in for several samplers, a thread each; they share the weights, which are loaded once.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace, self._version, self._checksum = pace, -1, ""
        self._state: dict[str, np.ndarray] = {}
        self._loading = threading.Lock()

    def load_weights(self, notice: WeightsNotice) -> WeightsAck:
        """Copies the weights like a sampler, and computes the checksum of the copy."""
        with self._loading:
            if self._version != notice.version:
                for chunk in notice.weights:
                    for name, array in ray.get(chunk).items():
                        np.copyto(self._state.setdefault(name, np.empty_like(array)), array)
                self._version, self._checksum = notice.version, quick_checksum(self._state, np.asarray)
        return WeightsAck(version=self._version, checksum=self._checksum, probe=notice.probe)

    def rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, np.ndarray, Trajectories]:
        """Sleeps for the time of a micro-batch; returns receipt, images and trajectories of its shapes."""
        started = time.perf_counter()
        rows = ray.get(task.prompts[0])
        assert all(rows[name]["image"]["bytes"] for name in task.prompt_ids)
        time.sleep(batch_seconds(self._pace, task.seed_key[-1], task.prompt_ids))
        count, steps = len(task.prompt_ids) * task.samples_per_prompt, len(task.plan.trained_steps)
        edge, latent = self._pace.edge_px, self._pace.edge_px // 8
        ones: Any = partial(np.ones, dtype=np.float32)  # Arrays where others have tensors.
        trajectories = Trajectories(
            condition=ones((count, 5, latent, latent)),
            latent_mask=ones((count, 1, latent, latent)),
            latents=ones((steps, count, 4, latent, latent)),
            next_latents=ones((steps, count, 4, latent, latent)),
            old_log_prob=ones((steps, count)),
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
    """Receives images and prompts like a scorer; sleeps instead of scoring."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def score(self, task: RolloutTask, images: np.ndarray) -> ScoreReceipt:
        """Returns rewards with a bound, drawn by prompt."""
        import torch

        from rlhf.rewards.scores import Scores

        rows = ray.get(task.prompts[0])
        assert all(name in rows for name in task.prompt_ids)
        assert len(images) == len(task.prompt_ids) * task.samples_per_prompt
        time.sleep(self._pace.score_s)
        reward = torch.randn(len(images), generator=torch.Generator().manual_seed(len(pickle.dumps(task.prompt_ids))))
        trust = torch.ones(len(images)).double()
        scores = Scores(reward=reward.double(), uncertainty=trust, trust_weight=trust, is_outlying=trust > 1)
        return ScoreReceipt(scores={"model": scores})
