"""Admission: which requests are answered, how many at a time, and with how much memory."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from fastapi import Request

from serve.api.api_errors import ApiError
from serve.api.api_keys import ApiKeys
from serve.api.guard import require_own_machine
from serve.api.request_metrics import REFUSED, WAITING
from serve.api.upload import Parts, receive_parts

UPLOADS_PER_PLACE = 4
"""Number of uploads that may arrive at once per place among the requests in work."""
STOPPING_S = 10.0
"""Seconds after which a client of a stopping service may ask again."""


class Admission:
    """The limits of one ingress replica."""

    def __init__(
        self,
        keys: ApiKeys | None,
        max_waiting: int,
        max_megapixels: float = math.inf,
        upload_timeout_s: float | None = None,
    ) -> None:
        self._keys, self._max_waiting, self._upload_timeout_s = keys, max_waiting, upload_timeout_s
        self._free_pixels = self._all_pixels = max_megapixels * 1e6
        self._waiting = self._arriving = 0
        self._is_closed = False

    def check(self, http: Request) -> str:
        """Returns the name of the request's API key, or `local` if the service has no keys.

        Without keys the service answers this machine only, whatever address it is bound to. Raises ApiError 401, 403
        or 429.
        """
        if self._keys is not None:
            self._keys.reload_if_changed()
            return self._keys.authorize(http.headers.get("authorization"), time.monotonic())
        message = "this service has no API keys, so it answers its own machine alone; start it with --api-keys"
        require_own_machine(http, message, "no_api_keys")
        return "local"

    async def admit(self, http: Request, held: ExitStack) -> Parts:
        """Receives a request; its place is freed when `held` closes.

        Raises ApiError 408 if the body arrives too slowly, 429 if there is no place, 503 during shutdown, and whatever
        `receive_parts` raises.
        """
        try:
            with self.upload_slot():
                async with asyncio.timeout(self._upload_timeout_s):
                    parts = await receive_parts(http)
                held.enter_context(self.place())
        except TimeoutError as error:
            message = f"the request took longer than {self._upload_timeout_s:g} s to arrive"
            raise ApiError(message, code="upload_timeout", status=408) from error
        return parts

    @contextmanager
    def upload_slot(self) -> Iterator[None]:
        """Holds an upload slot. Raises ApiError 429 if the queue is full and 503 during shutdown.

        Uploads have slots of their own, so that slow ones do not block requests that are ready to paint.
        """
        if self._is_closed:
            raise ApiError("the service is stopping", code="unavailable", status=503, retry_after_s=STOPPING_S)
        if self._waiting >= self._max_waiting or self._arriving >= UPLOADS_PER_PLACE * self._max_waiting:
            raise _overloaded("too many requests are waiting; try again")
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place among the requests in work. Raises ApiError 429 if all are taken."""
        if self._waiting >= self._max_waiting:
            raise _overloaded("too many requests are waiting; try again")
        self._waiting += 1
        WAITING.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= 1
            WAITING.set(self._waiting)

    @contextmanager
    def memory(self, pixels: int) -> Iterator[None]:
        """Holds memory for a number of decoded pixels.

        Raises ApiError 429 if other requests hold it, and 413 if the service never has so much.
        """
        if pixels > self._all_pixels:
            message = f"{pixels / 1e6:.0f} megapixels with all samples; this service takes {self._all_pixels / 1e6:.0f}"
            raise ApiError(f"{message}; ask for fewer images, or send a smaller photograph", status=413)
        if pixels > self._free_pixels:
            raise _overloaded("large photographs are in work; try again")
        self._free_pixels -= pixels
        try:
            yield
        finally:
            self._free_pixels += pixels

    async def close(self, seconds: float) -> None:
        """Refuses new requests, and waits up to `seconds` until those in work are answered."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._waiting or self._arriving:
                    await asyncio.sleep(0.1)


def _overloaded(message: str) -> ApiError:
    REFUSED.inc()
    return ApiError(message, code="overloaded", status=429)
