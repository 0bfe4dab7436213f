"""A reward behind HTTP, in another process or on another machine; `rlhf reward-server` is the reference server."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import requests
import torch
from pydantic import ValidationError

from rlhf.errors import UserError
from rlhf.rewards.scores import Scores
from rlhf.rewards.wire import MAX_IMAGES, RewardReply, encode_request

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class RemoteServer:
    """Posts batches of at most MAX_IMAGES; the schema is that of `rlhf/rewards/wire.py`."""

    name: str
    url: str
    timeout_s: float
    """Seconds of silence after which a try has failed."""
    retries: int
    """Further tries where the server does not answer, is overloaded (429) or fails (5xx); pauses double."""
    text: str | None

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Shapes as in RewardSource; null becomes NaN. UserError where no try brings an answer that fits."""
        texts = list(captions) if self.text is None else [self.text] * len(captions)
        rewards: list[float | None] = []
        for start in range(0, len(images), MAX_IMAGES):
            part = slice(start, start + MAX_IMAGES)
            request = encode_request(images[part], masks[part], texts[part])
            rewards += self._read(self._post(request.model_dump()), count=len(request.images))
        return Scores(reward=torch.tensor([torch.nan if r is None else r for r in rewards], dtype=torch.float64))

    def _post(self, body: dict) -> requests.Response:
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
            try:
                response = requests.post(self.url, json=body, timeout=self.timeout_s)
            except requests.Timeout:
                problem = f"was silent for {self.timeout_s} s; raise timeout_s or look at the server"
                continue
            except requests.RequestException as error:
                problem = f"does not answer ({error}); is the server running?"
                continue
            if response.status_code != 429 and response.status_code < 500:
                return response
            problem = f"answered {response.status_code}: {response.text[:200]}"
        raise UserError(f"reward {self.name}: {self.url} {problem} ({self.retries + 1} tries)")

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
