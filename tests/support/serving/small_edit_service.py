"""A service of image edits without a model: requests are read by the service's own code, holes get one colour."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from small_uploads import DECODER

from rlhf.diffusion.tiles import Canvas
from serve.api.api_errors import ApiError, answer_api_error, answer_invalid_form
from serve.api.edit_page import add_page
from serve.api.edit_request import EditRequest
from serve.api.upload import open_upload, receive_parts

BASE = {"id": "tiny", "object": "model", "created": 0, "owned_by": "prefpaint-ray", "base": None}
ALIGNED = BASE | {"id": "aligned", "base": "tiny", "policy_version": "30-9f86d081", "has_reward": True}
LOWER = (0.1, 0.4, 0.2, 0.3)
"""Lower ends of the reward's bound for samples 0 to 3."""


@dataclass(kw_only=True)
class Received:
    """A request, as the service reads it."""

    asked: EditRequest
    image: bytes
    upload: Canvas


@dataclass(kw_only=True)
class SmallService:
    """The answers of the service, which tests change, and the requests that it received."""

    address: str = ""
    models: list[dict[str, Any]] = field(default_factory=lambda: [ALIGNED, BASE])
    has_reward: bool = True
    key: str | None = None
    refusals: list[Response] = field(default_factory=list)
    """Answers to send in place of the next ones, in this order."""
    may_answer: threading.Event = field(default_factory=threading.Event)
    """Cleared by a test to hold answers back."""
    received: list[Received] = field(default_factory=list)


def colour(model: str | None, sample: int) -> tuple[int, int, int]:
    """Returns the colour that fills a hole."""
    return (200 if model == "tiny" else 20, 40 + 50 * sample, 90)


def _check_key(service: SmallService, http: Request) -> None:
    if service.key is not None and http.headers.get("authorization") != f"Bearer {service.key}":
        raise ApiError("this key is not known; ask who runs the service for one", code="invalid_api_key", status=401)


def _build(service: SmallService) -> FastAPI:
    api = FastAPI()
    api.exception_handler(ApiError)(answer_api_error)
    api.exception_handler(RequestValidationError)(answer_invalid_form)
    add_page(api)

    @api.get("/v1/models")
    async def models(http: Request) -> dict[str, Any]:
        _check_key(service, http)
        return {"object": "list", "data": service.models}

    @api.post("/v1/images/edits")
    async def edit(http: Request) -> Response:
        _check_key(service, http)
        if service.refusals:
            return service.refusals.pop(0)
        parts = await receive_parts(http)
        asked, upload = parts.asked, await (await open_upload(parts, DECODER)).decode(DECODER)
        service.received.append(Received(asked=asked, image=parts.image, upload=upload))
        await asyncio.to_thread(service.may_answer.wait)
        data = [_fill(service, upload, asked, sample) for sample in range(asked.n)]
        headers = {"x-policy-version": "30-9f86d081", "x-seed": str(asked.seed)}
        size = f"{upload.hole.shape[1]}x{upload.hole.shape[0]}"
        return JSONResponse({"created": 0, "size": size, "output_format": "png", "data": data}, headers=headers)

    return api


def _fill(service: SmallService, upload: Canvas, asked: EditRequest, sample: int) -> dict[str, Any]:
    pixels = upload.rgb.copy()
    pixels[upload.hole] = colour(asked.model, sample)
    scores = {"reward": LOWER[sample] + 0.2, "lower": LOWER[sample], "upper": LOWER[sample] + 0.5}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return {"b64_json": base64.b64encode(buffer.getvalue()).decode(), **(scores if service.has_reward else {})}


@contextmanager
def run_small_service() -> Iterator[SmallService]:
    """Serve on a free port of this machine until the block ends."""
    service = SmallService()
    service.may_answer.set()
    server = uvicorn.Server(uvicorn.Config(_build(service), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    service.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        service.may_answer.set()
        server.should_exit = True
        thread.join()


def make_photograph(width: int, height: int) -> np.ndarray:
    """Uint8 [H, W, 3] with another colour in each corner, so that rotations are visible."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.dstack([x, y, 255 - (x + y) / 2]).astype(np.uint8)
