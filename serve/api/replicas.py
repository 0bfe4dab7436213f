"""The replicas of a base model as the HTTP interface sees them: jobs go out, and again where a replica dies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from rlhf.promotion.catalogue import ServedPolicy
from serve.api.api_errors import ApiError
from serve.api.request_metrics import RETRIED
from serve.engine.jobs import Inpainted, Job, Partial, Served

ATTEMPTS = 4
"""How often a job is tried; its seed makes it the same each time."""
RETRY_WAIT_S = 0.2
DEATHS = (ActorDiedError, ActorUnavailableError, RayActorError)


class Replicas:
    """Of one base model."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._served: Served | None = None

    async def describe(self) -> Served:
        """What is served; an answer means that a replica has loaded its model."""
        async for attempt in _attempts():
            with attempt:
                return await self._handle.describe.remote()
        raise _nobody()

    async def served(self) -> Served:
        """As `describe`, asked once: it is the same for all replicas."""
        if self._served is None:
            self._served = await self.describe()
        return self._served

    async def prepare(self, policy: ServedPolicy) -> None:
        """Load a policy in one replica; UserError where it does not load."""
        async for attempt in _attempts():
            with attempt:
                return await self._handle.prepare.remote(policy)
        raise _nobody()

    async def inpaint(self, job: Job) -> AsyncIterator[Partial | Inpainted]:
        """Estimates as they come, each once, and at last the answer; a death of the replica starts the job again."""
        told = -1
        async for attempt in _attempts():
            with attempt:
                if not job.partial_images:  # one answer costs less than a stream of one
                    yield await self._handle.inpaint.remote(job)
                    return
                async for event in self._handle.options(stream=True).stream.remote(job):
                    if isinstance(event, Partial):
                        if event.index <= told:
                            continue
                        told = event.index
                    yield event
                return
        raise _nobody()


async def _attempts() -> AsyncIterator[suppress]:
    """Contexts in which a replica may die, with growing pauses between them."""
    for attempt in range(ATTEMPTS):
        if attempt:
            RETRIED.inc()
            await asyncio.sleep(RETRY_WAIT_S * 2**attempt)
        yield suppress(*DEATHS)


def _nobody() -> ApiError:
    return ApiError("the model's replicas die; see their logs", code="unavailable", status=503)
