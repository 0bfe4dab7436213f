"""Who is let in: whose requests are answered, how many at a time, and from where."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from fastapi import Request

from serve.api.addresses import is_loopback
from serve.api.api_errors import ApiError
from serve.api.api_keys import ApiKeys
from serve.api.request_metrics import REFUSED, WAITING

UPLOADS_PER_PLACE = 4
STOPPING_S = 10.0
"""When a client of a service that stops may ask again."""


class GateKeeper:
    """Of one ingress."""

    def __init__(self, keys: ApiKeys | None, max_waiting: int, max_megapixels: float = math.inf) -> None:
        self._keys, self._max_waiting = keys, max_waiting
        self._room = max_megapixels * 1e6
        self._waiting = self._arriving = 0
        self._is_closed = False

    def check(self, http: Request) -> str:
        """The name of the key that a request brings, or `local`; ApiError 401, 403 or 429.

        Without keys only this machine is answered, however the server was bound. A page of another site that sends
        its visitor's browser here is refused: browsers say where such a request comes from.
        """
        origin = http.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != http.headers.get("host"):
            raise ApiError("requests from pages of other sites are refused", code="cross_origin", status=403)
        if self._keys is not None:
            self._keys.reload_if_changed()
            return self._keys.authorize(http.headers.get("authorization"), time.monotonic())
        # A page of another site may name this machine as its own (DNS rebinding); its Host is that site's.
        asked_for = urlsplit(f"//{http.headers.get('host', 'localhost')}").hostname or ""
        if (http.client is not None and not is_loopback(http.client.host)) or not is_loopback(asked_for):
            message = "this service has no API keys, so it answers its own machine alone; start it with --api-keys"
            raise ApiError(message, code="no_api_keys", status=403)
        return "local"

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Memory for so many decoded pixels; ApiError 429 where others hold it."""
        if pixels > self._room:
            REFUSED.inc()
            raise ApiError("large photographs are in work; try again", code="overloaded", status=429)
        self._room -= pixels
        try:
            yield
        finally:
            self._room += pixels

    @contextmanager
    def upload(self) -> Iterator[None]:
        """While a request arrives; ApiError 429 at once where there will be no place for it, 503 when stopping.

        Uploads have places of their own, so that slow ones do not keep others from being painted.
        """
        if self._is_closed:
            raise ApiError("the service is stopping", code="unavailable", status=503, retry_after_s=STOPPING_S)
        if self._waiting >= self._max_waiting or self._arriving >= UPLOADS_PER_PLACE * self._max_waiting:
            REFUSED.inc()
            raise ApiError("too many requests are waiting; try again", code="overloaded", status=429)
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    async def close(self, seconds: float) -> None:
        """Refuse new requests, and wait until those in work are answered, for so long at most."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._waiting or self._arriving:
                    await asyncio.sleep(0.1)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests in work; ApiError 429 where all are taken."""
        if self._waiting >= self._max_waiting:
            REFUSED.inc()
            raise ApiError("too many requests are waiting; try again", code="overloaded", status=429)
        self._waiting += 1
        WAITING.set(self._waiting)
        try:
            yield
        finally:
            self._waiting -= 1
            WAITING.set(self._waiting)
