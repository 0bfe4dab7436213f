"""The Ray Serve deployment that holds a base model and the policies on it."""

from collections.abc import AsyncIterator

import numpy as np
from ray import serve as ray_serve

from rlhf.promotion.catalogue import ServedPolicy
from rlhf.rewards.learned.reward_folder import load_reward
from serve.engine.engine import Engine, warm_up
from serve.engine.jobs import Inpainted, Partial, Served, TileJob
from serve.engine.policy_cache import PolicyCache
from serve.settings import EngineSettings


@ray_serve.deployment(max_ongoing_requests=10_000, max_constructor_retry_count=1)
class Inpainter:
    """One replica; the HTTP interface limits the number of requests that reach it."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        reward = load_reward(settings.reward) if settings.reward is not None else None
        cache = PolicyCache(model, settings)
        if settings.warmup:
            warm_up(cache, reward, settings, lambda size: _blank_job(cache.base.native_px, size))
        self.served = Served(native_px=cache.base.native_px, has_reward=reward is not None)
        self.engine = Engine(cache, reward, settings)

    async def describe(self) -> Served:
        """Returns what is served; an answer means that the model is loaded."""
        return self.served

    async def prepare(self, policy: ServedPolicy) -> None:
        """Loads a policy before it takes requests. Raises UserError if it does not load."""
        job = _blank_job(self.served.native_px, 1, policy)
        async for _ in self.engine.inpaint(job):
            pass

    async def inpaint(self, job: TileJob) -> Inpainted:
        """Returns the answer without previews."""
        return [event async for event in self.engine.inpaint(job) if isinstance(event, Inpainted)][0]

    async def stream(self, job: TileJob) -> AsyncIterator[Partial | Inpainted]:
        """Yields previews as they come, and at last the answer."""
        async for event in self.engine.inpaint(job):
            yield event


def _blank_job(native_px: int, images: int, policy: ServedPolicy | None = None) -> TileJob:
    """Returns a job of one step on a grey tile."""
    hole = np.zeros((native_px, native_px), bool)
    hole[: native_px // 2] = True
    return TileJob(
        policy=policy or ServedPolicy(),
        image=np.full((native_px, native_px, 3), 128, np.uint8),
        hole=hole,
        sample_indices=tuple(range(images)),
        seed=0,
        num_inference_steps=1,
    )
