"""Serves a reward over HTTP: the reference server of `kind: http`."""

import math
import socket
import threading
from dataclasses import replace

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rlhf.config.devices import resolve_device
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import ModelConfig
from rlhf.errors import UserError
from rlhf.rewards.open_reward import build_reward
from rlhf.rewards.scores import Reward
from rlhf.rewards.wire import MAX_IMAGES, RewardReply, RewardRequest, decode_request
from serve.api.api_errors import (
    ApiError,
    answer_api_error,
    answer_failure,
    answer_http_error,
    answer_invalid_form,
)
from serve.api.guard import Guard, Rules, is_loopback

RULES = Rules(body_bytes=MAX_IMAGES * 8_000_000, json_items=4 * MAX_IMAGES, has_pages=False)

DECODED_AT_ONCE = 2
"""Requests whose pictures are decoded at a time."""


def build_app(reward: Reward, name: str, rules: Rules = RULES) -> FastAPI:
    """Builds the application with POST /v1/rewards and GET /healthz; it scores one batch at a time."""
    app = FastAPI(title="prefpaint-ray reward")
    app.add_middleware(Guard, rules=rules)
    app.exception_handler(ApiError)(answer_api_error)
    app.exception_handler(RequestValidationError)(answer_invalid_form)
    app.exception_handler(HTTPException)(answer_http_error)
    app.exception_handler(Exception)(answer_failure)
    lock = threading.Lock()
    decoding = threading.BoundedSemaphore(DECODED_AT_ONCE)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Answers 200 once the reward is loaded."""
        return {"status": "ok", "reward": name}

    @app.post("/v1/rewards")
    def score(request: RewardRequest) -> RewardReply:
        """Answers one number per image, null if it is not finite."""
        try:
            with decoding:
                images, masks = decode_request(request)
        except UserError as error:
            raise ApiError(str(error)) from error
        try:
            with lock:
                scores = reward.score(images, masks, request.captions)
        except UserError as error:
            raise ApiError(str(error), status=500) from error
        return RewardReply(rewards=[r if math.isfinite(r) else None for r in scores.reward.tolist()])

    return app


def run(entry: RewardEntry, model: ModelConfig, host: str, port: int) -> None:
    """Serves until Ctrl-C; raises UserError if the reward does not load or the address is taken."""
    listener = _listen(host, port)
    with listener:
        reward = build_reward(entry, None, resolve_device(model.device))
        address, port = listener.getsockname()[:2]
        where = f"http://{f'[{address}]' if ':' in address else address}:{port}/v1/rewards"
        print(f"Serving reward {entry.label} at {where} until Ctrl-C", flush=True)
        app = build_app(reward, entry.label, replace(RULES, is_own_machine_only=is_loopback(address)))
        config = uvicorn.Config(app, log_level="warning")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            print("stopping", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error}); choose another --host or --port") from error
