"""A stand-in for a replica's model: it takes a GPU's time without computing, so that a small machine holds many."""

import asyncio

import numpy as np
from ray import serve as ray_serve

from rlhf.promotion.catalogue import ServedPolicy
from serve.engine.jobs import Inpainted, Served, TileJob

NATIVE_PX = 64


@ray_serve.deployment(max_ongoing_requests=10_000, max_constructor_retry_count=1)
class StandInPainter:
    """A replica that answers each job with its own picture after `paint_s` seconds, any number of jobs at once."""

    def __init__(self, paint_s: float) -> None:
        self._paint_s = paint_s

    async def describe(self) -> Served:
        """Returns what is served."""
        return Served(native_px=NATIVE_PX, sizes=((NATIVE_PX, NATIVE_PX),), has_reward=False)

    async def prepare(self, policy: ServedPolicy) -> None:
        """Loads nothing."""

    async def inpaint(self, job: TileJob) -> Inpainted:
        """Waits as long as painting would take."""
        await asyncio.sleep(self._paint_s)
        count = len(job.sample_indices)
        return Inpainted(
            images=np.repeat(job.image[None], count, axis=0),
            scores=(),
            unsafe=(),
            queued_s=0.0,
            denoised_s=self._paint_s,
            batch_images=float(count),
        )
