"""The guard in front of all servers: malformed headers, pages of other sites, and bodies that are too large.

It looks at a request before its key or token is read, so the answer is the same with and without one.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.api_errors import ApiError, answer_api_error

MAX_NESTING = 16
"""Most arrays and objects inside each other in a JSON body."""
MAX_ESCAPES = 2_000_000
"""Most escapes in a JSON body's texts; some encoders escape each slash of base64."""
DEFAULT_PORT = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::(\d{1,5}))?")
_OUTSIDE_TEXT = re.compile(rb'[\[\]{},"]')
_INSIDE_TEXT = re.compile(rb'["\\]')


class Authority(NamedTuple):
    """A host as `Host` and `Origin` name it."""

    name: str
    """In lower case, an IPv6 address without brackets."""
    port: int | None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one server admits."""

    body_bytes: int
    """Longest body."""
    json_items: int
    """Most fields and elements of a JSON body, counted through all levels."""
    is_own_machine_only: bool = False
    """Whether only this machine may ask, under its own address: for servers without keys."""
    has_pages: bool = True
    """Whether the server's own pages send requests; without pages nothing that a browser's page sends is answered."""


class Guard:
    """Middleware that refuses what breaks the rules; it must be the outermost but for measurement."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on, or answers it with 400, 403 or 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            self._check(request)
        except ApiError as error:
            await answer_api_error(request, error)(scope, receive, send)
            return
        await self.app(scope, self._bound(request, receive), send)

    def _check(self, request: Request) -> None:
        """Raises ApiError if the head of the request breaks the rules."""
        check_origin(request, self.rules.has_pages)
        if self.rules.is_own_machine_only:
            require_own_machine(request, "this server answers its own machine alone", "other_machine")
        declared = request.headers.get("content-length", "0")
        if not declared.isascii() or not declared.isdigit():
            raise _malformed("content-length")
        if len(declared) > 18 or int(declared) > self.rules.body_bytes:
            raise ApiError(self._too_long(), status=413)

    def _bound(self, request: Request, receive: Receive) -> Receive:
        """Returns `receive` that stops at the limits, whatever length the request declares."""
        is_json = not request.headers.get("content-type", "").lower().startswith("multipart/")
        received, bounds = 0, JsonBounds(self.rules.json_items)

        async def receive_within_limits() -> Message:
            nonlocal received
            message = await receive()
            body = message.get("body", b"")
            received += len(body)
            if received > self.rules.body_bytes:
                raise HTTPException(413, self._too_long())
            if is_json:
                bounds.feed(body)
            return message

        return receive_within_limits

    def _too_long(self) -> str:
        return f"the request is longer than {self.rules.body_bytes / 1e6:.0f} MB"


class JsonBounds:
    """Counts the items and the nesting of a JSON text as it arrives, before it is parsed."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items = self._depth = self._escapes = 0
        self._is_text = self._is_escaped = False

    def feed(self, data: bytes) -> None:
        """Takes the next bytes. Raises HTTPException 400 beyond the bounds."""
        position = int(self._is_escaped and bool(data))
        self._is_escaped = self._is_escaped and not data
        while (found := (_INSIDE_TEXT if self._is_text else _OUTSIDE_TEXT).search(data, position)) is not None:
            position = found.end()
            if found[0] == b'"':
                self._is_text = not self._is_text
            elif found[0] == b"\\":
                self._escapes += 1
                self._is_escaped = position == len(data)
                position += 1
            else:
                self._depth += {b"[": 1, b"{": 1, b",": 0}.get(found[0], -1)
                self._items += found[0] in (b",", b"[", b"{")
            if self._depth > MAX_NESTING or self._items > self._max_items or self._escapes > MAX_ESCAPES:
                limits = f"{self._max_items} fields, {MAX_NESTING} levels or {MAX_ESCAPES} escapes"
                raise HTTPException(400, f"the JSON of the request has more than {limits}")


def check_origin(request: Request, has_pages: bool) -> None:
    """Refuses requests that the pages of other sites send; browsers name the site in `Origin` and `Sec-Fetch-Site`.

    Opening an address of this server in a browser is no such request. Raises ApiError 400 for malformed headers, and
    403.
    """
    host = _read_host(request)
    origins = request.headers.getlist("origin")
    if len(origins) > 1:
        raise _malformed("origin")
    is_foreign = bool(origins) and not (_is_same(origins[0], host) and has_pages)
    site, mode = (request.headers.get(f"sec-fetch-{name}") for name in ("site", "mode"))
    is_opened = mode == "navigate" and request.method in ("GET", "HEAD")
    is_opened = is_opened and request.headers.get("sec-fetch-dest") == "document"
    if is_foreign or (site in ("cross-site", "same-site") and not is_opened):
        raise ApiError("requests from pages of other sites are refused", code="cross_origin", status=403)


def require_own_machine(request: Request, message: str, code: str) -> None:
    """Raises ApiError 403 with this message unless this machine asks, and under an address of its own.

    DNS rebinding: another site may resolve its own name to this machine; `Host` still names that site.
    """
    host = _read_host(request)
    is_ours = host is None or is_loopback(host.name)
    if not is_ours or (request.client is not None and not is_loopback(request.client.host)):
        raise ApiError(message, code=code, status=403)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_host(request: Request) -> Authority | None:
    """Returns what `Host` names; HTTP/1.0 may leave it out. Raises ApiError 400 if it is malformed."""
    hosts = request.headers.getlist("host")
    place = _parse_authority(hosts[0]) if hosts else None
    if len(hosts) > 1 or (hosts and place is None):
        raise _malformed("host")
    return place


def _is_same(origin: str, host: Authority | None) -> bool:
    """Whether an origin is this server. Raises ApiError 400 if it is malformed."""
    if origin in ("", "null"):
        return False
    scheme, _, rest = origin.lower().partition("://")
    place = _parse_authority(rest)
    if place is None or re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) is None:
        raise _malformed("origin")
    default = DEFAULT_PORT.get(scheme)
    return host is not None and place.name == host.name and (place.port or default) == (host.port or default)


def _parse_authority(text: str) -> Authority | None:
    match = _HOST.fullmatch(text)
    if match is None or int(match[2] or 0) > 65535:
        return None
    name = match[1].lower()
    if name.startswith("["):
        try:
            name = str(ipaddress.IPv6Address(name[1:-1]))
        except ValueError:
            return None
    return Authority(name, None if match[2] is None else int(match[2]))


def _malformed(header: str) -> ApiError:
    return ApiError(f"the header {header} is malformed", code="malformed_header")
