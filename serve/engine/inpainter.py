"""The Ray Serve deployment that holds a base model and the policies on it."""

from collections.abc import AsyncIterator

import numpy as np
from ray import serve as ray_serve

from rlhf.config.devices import resolve_device
from rlhf.promotion.catalogue import ServedPolicy
from rlhf.rewards.open_reward import open_reward, reads_captions
from serve.engine.engine import Engine, warm_up
from serve.engine.jobs import Inpainted, Job, Partial, Served
from serve.engine.policy_cache import PolicyCache
from serve.settings import EngineSettings


@ray_serve.deployment(max_ongoing_requests=10_000, max_constructor_retry_count=1)
class Inpainter:
    """A replica; the HTTP interface bounds how many requests reach it."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        place = settings.reward
        reward = open_reward(place, resolve_device(settings.device)) if place is not None else None
        cache = PolicyCache(model, settings)
        if settings.warmup:
            warm_up(cache, reward, settings, lambda size: _blank_job(cache.base.native_px, size))
        self.served = Served(
            native_px=cache.base.native_px,
            has_reward=reward is not None,
            reads_captions=place is not None and reads_captions(place),
        )
        self.engine = Engine(cache, reward, settings)

    async def describe(self) -> Served:
        """What is served; an answer means that the model is loaded."""
        return self.served

    async def prepare(self, policy: ServedPolicy) -> None:
        """Load a policy before it takes requests; raises UserError where it does not load."""
        job = _blank_job(self.served.native_px, 1, policy)
        async for _ in self.engine.inpaint(job):
            pass

    async def inpaint(self, job: Job) -> Inpainted:
        """The answer alone."""
        return [event async for event in self.engine.inpaint(job) if isinstance(event, Inpainted)][0]

    async def stream(self, job: Job) -> AsyncIterator[Partial | Inpainted]:
        """Estimates as they come, and at last the answer."""
        async for event in self.engine.inpaint(job):
            yield event


def _blank_job(native_px: int, images: int, policy: ServedPolicy | None = None) -> Job:
    """One step on a grey square."""
    hole = np.zeros((native_px, native_px), bool)
    hole[: native_px // 2] = True
    return Job(
        policy=policy or ServedPolicy(),
        image=np.full((native_px, native_px, 3), 128, np.uint8),
        hole=hole,
        sample_indices=tuple(range(images)),
        seed=0,
        num_inference_steps=1,
        prompt="a grey square",
    )
