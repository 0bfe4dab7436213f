"""Reward behind HTTP, in another process or on another machine; `rlhf reward-server` is the reference server."""

from collections.abc import Sequence
from dataclasses import dataclass

import requests
import torch
from pydantic import ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores
from rlhf.rewards.wire import MAX_IMAGES, RewardReply, encode_request

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0


class _NoAnswerError(Exception):
    """One try failed in a way that a retry may mend; the message completes "URL ..."."""


@dataclass(frozen=True, kw_only=True)
class RemoteServer:
    """Client that posts batches of at most MAX_IMAGES; `rlhf/rewards/wire.py` has the schema."""

    name: str
    url: str
    timeout_s: float
    """Seconds of silence after which a try has failed."""
    retries: int
    """Number of retries if the server does not answer, is overloaded (429) or fails (5xx); pauses double."""
    text: str | None
    """Fixed text in place of the captions."""

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images; shapes as in Reward, null becomes NaN. Raises UserError if no try brings a valid answer."""
        texts = list(captions) if self.text is None else [self.text] * len(captions)
        rewards: list[float | None] = []
        for start in range(0, len(images), MAX_IMAGES):
            part = slice(start, start + MAX_IMAGES)
            request = encode_request(images[part], masks[part], texts[part])
            rewards += self._read(self._post(request.model_dump()), count=len(request.images))
        return Scores(reward=torch.tensor([torch.nan if r is None else r for r in rewards], dtype=torch.float64))

    def _post(self, body: dict) -> requests.Response:
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

    def _post_once(self, body: dict) -> requests.Response:
        try:
            response = requests.post(self.url, json=body, timeout=self.timeout_s)
        except requests.Timeout as error:
            problem = f"was silent for {self.timeout_s} s; raise timeout_s or look at the server"
            raise _NoAnswerError(problem) from error
        except requests.RequestException as error:
            raise _NoAnswerError(f"does not answer ({error}); is the server running?") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise _NoAnswerError(f"answered {response.status_code}: {response.text[:200]}")
        return response

    def _read(self, response: requests.Response, *, count: int) -> list[float | None]:
        if response.status_code != 200:
            raise UserError(
                f"reward {self.name}: {self.url} refused the request with {response.status_code}: {response.text[:200]}"
            )
        try:
            reply = RewardReply.model_validate_json(response.content)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "answer"
            raise UserError(
                f"reward {self.name}: {self.url} answered {response.text[:80]!r}, which is not "
                f'{{"rewards": [number or null, ...]}} ({where}: {problem["msg"]})'
            ) from error
        if len(reply.rewards) != count:
            raise UserError(f"reward {self.name}: {self.url} answered {len(reply.rewards)} rewards for {count} images")
        return reply.rewards


def open_entry(entry: RewardEntry, device: torch.device) -> RemoteServer:
    """Returns the client of the server at the entry's `url`; nothing is sent yet."""
    assert entry.url is not None
    return RemoteServer(
        name=entry.label, url=entry.url, timeout_s=entry.timeout_s, retries=entry.retries, text=entry.text
    )
