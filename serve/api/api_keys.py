"""API keys: who may ask, and how often. A service stores only the SHA-256 of each key.

A key has 256 random bits, so a plain hash protects it. A line of the file, or of PREFPAINT_API_KEYS, is
`NAME:SHA-256 in hex[:requests per minute]`; `rlhf api-key NAME` prints it.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.promotion.catalogue import NAME_PATTERN
from rlhf.storage.url_path import UrlPath
from serve.api.api_errors import ApiError

VARIABLE = "PREFPAINT_API_KEYS"
PREFIX = "pp-"
DEFAULT_PER_MINUTE = 60
"""Rate of a key whose line names none."""
NAME_RULE = "takes letters, digits, dots, dashes and underscores, 64 at most, a letter or digit first"
REMEDY = "make a line with `rlhf api-key NAME`"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One line of a key file."""

    name: str
    """Owner of the key."""
    sha256: bytes
    """SHA-256 of the key, 32 bytes."""
    per_minute: int = DEFAULT_PER_MINUTE
    """Number of requests that may come at once; the budget refills within a minute."""


@dataclass
class Bucket:
    """The remaining requests of a key (token bucket)."""

    left: float
    since_s: float
    """Time of the last update, in seconds on the caller's clock."""


class ApiKeys:
    """The keys of a service and their remaining requests. Thread-safe.

    Each process counts for itself, and starts with full budgets.
    """

    def __init__(self, keys: tuple[ApiKey, ...], file: Path | None = None, stamp: tuple | None = None) -> None:
        self.keys = keys
        self.file = file
        """File that `reload_if_changed` reads again; None if the keys come from the environment."""
        self._stamp = stamp
        self._buckets: dict[ApiKey, Bucket] = {}
        self._lock = threading.Lock()

    def authorize(self, authorization: str | None, now: float) -> str:
        """Returns the name of the key in an Authorization header. `now` is in seconds on a monotonic clock.

        Raises ApiError 401 if the key is missing or unknown, 429 if it has no request left.
        """
        scheme, _, given = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise ApiError(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                code="invalid_api_key",
                status=401,
            )
        found = self._find(hashlib.sha256(given.strip().encode("utf-8", "replace")).digest())
        if found is None:
            raise ApiError(
                "Incorrect API key provided. Ask whoever runs this service for one.", code="invalid_api_key", status=401
            )
        self._take(found, now)
        return found.name

    def _find(self, digest: bytes) -> ApiKey | None:
        """Compares every key in constant time, so that the duration reveals nothing."""
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _take(self, key: ApiKey, now: float) -> None:
        rate = key.per_minute / 60
        with self._lock:
            bucket = self._buckets.setdefault(key, Bucket(left=float(key.per_minute), since_s=now))
            bucket.left = min(float(key.per_minute), bucket.left + max(0.0, now - bucket.since_s) * rate)
            bucket.since_s = now
            if bucket.left < 1 - 1e-9:  # Rounding: three thirds may be less than 1.
                raise ApiError(
                    f"Rate limit reached for requests: limit {key.per_minute} per minute. Try again later.",
                    code="rate_limit_exceeded",
                    status=429,
                    retry_after_s=(1 - bucket.left) / rate,
                )
            bucket.left -= 1

    def reload_if_changed(self) -> bool:
        """Reads the file again if it changed. Returns whether keys were replaced.

        A missing or damaged file leaves the keys as they are and is logged once per change. Keys with unchanged lines
        keep their budgets. Keys from the environment or a URL are never read again.
        """
        if self.file is None or isinstance(self.file, UrlPath):
            return False
        stamp = _stamp(self.file)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            keys = read_keys(self.file)
        except UserError as error:
            log.warning("%s; the %d keys read before stay in force", error, len(self.keys))
            return False
        with self._lock:
            self.keys = keys
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if key in keys}
        log.info("%s: %d keys are in force", self.file, len(keys))
        return True


def load_api_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKeys | None:
    """Returns the keys in a file, or else those in PREFPAINT_API_KEYS; None if neither is given.

    Raises UserError if the file or the variable holds no key, or a damaged line.
    """
    if file is not None:
        stamp = None if isinstance(file, UrlPath) else _stamp(file)
        return ApiKeys(read_keys(file), file, stamp)
    text = environment.get(VARIABLE)
    return None if text is None else ApiKeys(parse_keys(text.replace(",", "\n"), VARIABLE))


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """Reads the keys in a file. Raises UserError, naming file and line, if it is damaged."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {REMEDY}") from error
    return parse_keys(text, str(file))


def parse_keys(text: str, place: str) -> tuple[ApiKey, ...]:
    """Parses keys line by line; blank lines and comments (#) are skipped.

    Raises UserError with place and line number, but never with the content: it may be a key put there by mistake.
    """
    lines: dict[str | bytes, int] = {}
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        where = f"{place}: line {number}"
        key = _parse_line(line.strip(), where)
        for what, value in (("name", key.name), ("key", key.sha256)):
            if value in lines:
                raise UserError(f"{where}: the {what} of line {lines[value]} again; each key has a line and a name")
            lines[value] = number
        keys.append(key)
    if not keys:
        raise UserError(f"{place}: holds no key, so that nobody could ask; {REMEDY}, or name no keys at all")
    return tuple(keys)


def _parse_line(line: str, where: str) -> ApiKey:
    fields = [field.strip() for field in line.split(":")]
    if len(fields) not in (2, 3):
        raise UserError(f"{where}: must be NAME:SHA-256[:requests per minute]; {REMEDY}")
    if not re.fullmatch(NAME_PATTERN, fields[0]):
        raise UserError(f"{where}: the name {NAME_RULE}; {REMEDY}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", fields[1]):
        raise UserError(f"{where}: the second field is no SHA-256 (64 hex digits); keys themselves are never kept")
    if len(fields) == 2:
        return ApiKey(name=fields[0], sha256=bytes.fromhex(fields[1]))
    if not re.fullmatch(r"[0-9]{1,9}", fields[2]) or int(fields[2]) == 0:
        raise UserError(f"{where}: requests per minute must be a whole number above 0, of 9 digits at most")
    return ApiKey(name=fields[0], sha256=bytes.fromhex(fields[1]), per_minute=int(fields[2]))


def new_key(name: str, per_minute: int = DEFAULT_PER_MINUTE) -> tuple[str, str]:
    """Returns a random key and its line. Raises UserError if the name or the rate is not valid."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(f"api-key: {name!r} {NAME_RULE}")
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}:{per_minute}"
    _parse_line(line, "api-key")
    return key, line


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Returns a value that changes with the file; None if the file is gone."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
