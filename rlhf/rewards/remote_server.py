"""Reward behind HTTP, in another process or on another machine; `rlhf reward-server` is the reference server."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import requests
import torch
from pydantic import ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.deadline import LateError, call_within
from rlhf.rewards.opening import Opening
from rlhf.rewards.scores import Scores
from rlhf.rewards.wire import RewardReply, encode_request, images_at_once

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
CHUNK_BYTES = 16 * 1024
BYTES_PER_NUMBER = 64
BYTES_OF_THE_REST = 64 * 1024
"""Largest size of an answer besides its numbers: further keys, or the text of an error."""


class _NoAnswerError(Exception):
    """One try failed in a way that a retry may mend; the message completes "URL ..."."""


@dataclass(frozen=True, kw_only=True)
class RemoteServer:
    """Client that posts batches as large as a server takes; `rlhf/rewards/wire.py` has the schema."""

    name: str
    url: str
    timeout_s: float
    """Seconds after which a try without a whole answer has failed."""
    retries: int
    """Number of retries if the server does not answer, is overloaded (429) or fails (5xx); pauses double."""
    text: str | None
    """Fixed text in place of the captions."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images; shapes as in Reward, null becomes NaN. Raises UserError if no try brings a valid answer."""
        texts = list(captions) if self.text is None else [self.text] * len(captions)
        rewards: list[float | None] = []
        size = images_at_once(images.shape[2] * images.shape[3])
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            request = encode_request(images[part], masks[part], texts[part])
            rewards += self._read(self._post(request.model_dump()), count=len(request.images))
        return Scores(reward=torch.tensor([torch.nan if r is None else r for r in rewards], dtype=torch.float64))

    def _post(self, body: dict) -> "_Answer":
        tries = Retrying(
            retry=retry_if_exception_type(_NoAnswerError),
            stop=stop_after_attempt(self.retries + 1),
            wait=wait_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S),
            reraise=True,
        )
        try:
            return tries(self._post_once, body)
        except _NoAnswerError as error:
            raise UserError(f"reward {self.name}: {self.url} {error} ({self.retries + 1} tries)") from error

    def _post_once(self, body: dict) -> "_Answer":
        largest = BYTES_OF_THE_REST + BYTES_PER_NUMBER * len(body["images"])
        try:
            answer = call_within(self.timeout_s, partial(self._receive, body, largest))
        except (requests.Timeout, LateError) as error:
            problem = f"gave no whole answer within {self.timeout_s} s; raise timeout_s or look at the server"
            raise _NoAnswerError(problem) from error
        except requests.RequestException as error:
            raise _NoAnswerError(f"does not answer ({error}); is the server running?") from error
        if answer.status == 429 or answer.status >= 500:
            raise _NoAnswerError(f"answered {answer.status}: {answer.text[:200]}")
        return answer

    def _receive(self, body: dict, largest: int) -> "_Answer":
        """Sends a batch and reads one byte more than the largest answer at most."""
        with requests.Session() as session:
            session.trust_env = not is_loopback(self.url)  # A proxy would answer for a machine of its own.
            with session.post(
                self.url, json=body, timeout=self.timeout_s, stream=True, allow_redirects=False
            ) as response:
                content = bytearray()
                for part in response.iter_content(CHUNK_BYTES):
                    content += part
                    if len(content) > largest:
                        break
                location = response.headers.get("location", "another address")
                return _Answer(
                    status=response.status_code,
                    content=bytes(content),
                    is_whole=len(content) <= largest,
                    location=location,
                )

    def _read(self, answer: "_Answer", *, count: int) -> list[float | None]:
        place = f"reward {self.name}: {self.url}"
        if 300 <= answer.status < 400:
            raise UserError(
                f"{place} answered {answer.status}, a redirect to {answer.location[:200]}; redirects are not followed: "
                "set `url` to the server itself"
            )
        if answer.status != 200:
            raise UserError(f"{place} refused the request with {answer.status}: {answer.text[:200]}")
        if not answer.is_whole:
            most = BYTES_OF_THE_REST + BYTES_PER_NUMBER * count
            raise UserError(f"{place} answered more than {most} bytes for {count} images; is it a reward server?")
        try:
            reply = RewardReply.model_validate_json(answer.content)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "answer"
            raise UserError(
                f"{place} answered {answer.text[:80]!r}, which is not "
                f'{{"rewards": [number or null, ...]}} ({where}: {problem["msg"]})'
            ) from error
        if len(reply.rewards) != count:
            raise UserError(f"{place} answered {len(reply.rewards)} rewards for {count} images")
        return reply.rewards


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """Answer of a server, cut off if it is larger than an answer can be."""

    status: int
    content: bytes
    is_whole: bool
    location: str
    """Address to which a redirect leads."""

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


def is_loopback(url: str) -> bool:
    """Returns whether a URL names this machine itself: `localhost`, or an address such as 127.0.0.1 and ::1."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def open_entry(entry: RewardEntry, opening: Opening) -> RemoteServer:
    """Returns the client of the server at the entry's `url`; nothing is sent yet."""
    assert entry.url is not None
    return RemoteServer(
        name=entry.label, url=entry.url, timeout_s=entry.timeout_s, retries=entry.retries, text=entry.text
    )
