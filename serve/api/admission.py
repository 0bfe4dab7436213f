"""Admission: which requests are answered, how many at a time, and with how much memory."""

import asyncio
import ipaddress
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

from fastapi import Request

from serve.api.api_errors import ApiError
from serve.api.api_keys import ApiKeys
from serve.api.request_metrics import REFUSED, WAITING
from serve.api.upload import Upload, receive_upload

UPLOADS_PER_PLACE = 4
"""Number of uploads that may arrive at once per place among the requests in work."""
STOPPING_S = 10.0
"""Seconds after which a client of a stopping service may ask again."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
        self._free_pixels = max_megapixels * 1e6
        self._waiting = self._arriving = 0
        self._is_closed = False

    def check(self, http: Request) -> str:
        """Returns the name of the request's API key, or `local` if the service has no keys.

        Without keys the service answers this machine only, whatever address it is bound to. Requests from pages of
        other sites are refused: browsers name the site in `Origin`. Raises ApiError 401, 403 or 429.
        """
        origin = http.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != http.headers.get("host"):
            raise ApiError("requests from pages of other sites are refused", code="cross_origin", status=403)
        if self._keys is not None:
            self._keys.reload_if_changed()
            return self._keys.authorize(http.headers.get("authorization"), time.monotonic())
        # DNS rebinding: another site may resolve its own name to this machine; `Host` still names that site.
        asked_for = urlsplit(f"//{http.headers.get('host', 'localhost')}").hostname or ""
        if (http.client is not None and not is_loopback(http.client.host)) or not is_loopback(asked_for):
            message = "this service has no API keys, so it answers its own machine alone; start it with --api-keys"
            raise ApiError(message, code="no_api_keys", status=403)
        return "local"

    async def admit(self, http: Request, held: ExitStack) -> Upload:
        """Receives a request; its place and its memory are freed when `held` closes.

        Raises ApiError 408 if the body arrives too slowly, 429 if there is no place or memory, 503 during shutdown,
        and whatever `receive_upload` raises.
        """
        try:
            with self.upload_slot():
                async with asyncio.timeout(self._upload_timeout_s):
                    upload = await receive_upload(http)
                held.enter_context(self.place())
        except TimeoutError as error:
            message = f"the request took longer than {self._upload_timeout_s:g} s to arrive"
            raise ApiError(message, code="upload_timeout", status=408) from error
        held.enter_context(self.memory(upload.pixels_in_work))
        return upload

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
        """Holds memory for a number of decoded pixels. Raises ApiError 429 if other requests hold it."""
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
