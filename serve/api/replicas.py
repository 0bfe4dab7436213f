"""The replicas of a base model, as the HTTP interface sees them: a job is sent again if its replica dies."""

from collections.abc import AsyncIterator
from typing import Any, NoReturn

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from rlhf.promotion.catalogue import ServedPolicy
from serve.api.api_errors import ApiError
from serve.api.request_metrics import RETRIED
from serve.engine.jobs import Inpainted, Partial, Served, TileJob

ATTEMPTS = 4
"""Number of times a job is tried; its seed makes every attempt paint the same."""
FIRST_RETRY_WAIT_S = 0.4
"""Seconds before the second attempt; each further wait is twice as long."""


class Replicas:
    """The replicas of one base model."""

    def __init__(self, handle: Any, first_retry_wait_s: float = FIRST_RETRY_WAIT_S) -> None:
        self._handle, self._first_retry_wait_s = handle, first_retry_wait_s
        self._served: Served | None = None

    async def describe(self) -> Served:
        """Returns what is served; an answer means that a replica has loaded its model."""
        return await self._call("describe")

    async def served(self) -> Served:
        """Returns what `describe` returned first: all replicas serve the same."""
        if self._served is None:
            self._served = await self.describe()
        return self._served

    async def prepare(self, policy: ServedPolicy) -> None:
        """Loads a policy in one replica. Raises UserError if it does not load."""
        await self._call("prepare", policy)

    async def inpaint(self, job: TileJob) -> AsyncIterator[Partial | Inpainted]:
        """Yields each preview once, and at last the answer. Raises ApiError 503 if replicas keep dying."""
        shown = -1
        async for attempt in self._attempts():
            with attempt:
                if not job.partial_images:  # one answer costs less than a stream of one
                    yield await self._handle.inpaint.remote(job)
                    return
                async for event in self._handle.options(stream=True).stream.remote(job):
                    if isinstance(event, Partial):
                        if event.index <= shown:
                            continue
                        shown = event.index
                    yield event
                return

    async def _call(self, method: str, *arguments: Any) -> Any:
        async def call() -> Any:
            return await getattr(self._handle, method).remote(*arguments)

        return await self._attempts()(call)

    def _attempts(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type((ActorDiedError, ActorUnavailableError, RayActorError)),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=self._first_retry_wait_s),
            before_sleep=lambda _: RETRIED.inc(),
            retry_error_callback=_give_up,
        )


def _give_up(state: RetryCallState) -> NoReturn:
    raise ApiError("the model's replicas die; see their logs", code="unavailable", status=503)
