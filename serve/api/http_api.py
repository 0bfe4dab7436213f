"""The HTTP interface: OpenAI's image edits, in front of the deployments that hold base models and policies."""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from ray import serve as ray_serve
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.exceptions import HTTPException

from rlhf.errors import UserError
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy
from serve.api.admission import GateKeeper
from serve.api.answers import Answers, to_event
from serve.api.api_errors import (
    ApiError,
    BodyLimit,
    answer_api_error,
    answer_failure,
    answer_http_error,
    answer_invalid_form,
    answer_user_error,
    to_api_error,
)
from serve.api.api_keys import load_api_keys
from serve.api.edit import Edit, log_answer, read_edit, refuse_unsafe, to_timing
from serve.api.edit_page import add_page
from serve.api.edit_request import describe_body, receive_edit
from serve.api.image_store import ImageStore
from serve.api.painting import Estimate, Painted, paint
from serve.api.replicas import Replicas
from serve.api.request_metrics import Measured, observe, render
from serve.api.served_names import ServedNames
from serve.api.uploads import MAX_UPLOAD_BYTES, count_pixels
from serve.settings import ServiceSettings, base_name

HEALTH_TIMEOUT_S = 10.0

api = FastAPI(title="prefpaint-ray", docs_url=None, redoc_url=None)
api.add_middleware(BodyLimit, limit_bytes=2 * MAX_UPLOAD_BYTES * 4 // 3 + 1_000_000)
api.add_middleware(Measured)
api.exception_handler(ApiError)(answer_api_error)
api.exception_handler(RequestValidationError)(answer_invalid_form)
api.exception_handler(HTTPException)(answer_http_error)
api.exception_handler(UserError)(answer_user_error)
api.exception_handler(Exception)(answer_failure)
add_page(api)


# Ray freezes the routes when it decorates the class: all that they call stands above it.
@ray_serve.deployment(
    max_ongoing_requests=1_000,
    max_queued_requests=1_000,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=2),
    ray_actor_options={"num_cpus": 0},
    logging_config=LoggingConfig(encoding="JSON"),
    max_constructor_retry_count=1,
)
@ray_serve.ingress(api)
class Api:
    """The HTTP interface: reads uploads, cuts them to size, and puts the answers back."""

    def __init__(self, handles: dict[str, DeploymentHandle], catalogue: Catalogue, settings: ServiceSettings) -> None:
        self.settings = settings
        self.replicas = {base: Replicas(handle) for base, handle in handles.items()}
        self.names = ServedNames(catalogue, settings.catalogue, set(handles), self._prepare)
        self.gate = GateKeeper(load_api_keys(settings.api_keys), settings.max_waiting, settings.max_megapixels)
        self.store = ImageStore(settings.store) if settings.store is not None else None
        self.created = int(time.time())

    async def _prepare(self, base: str, policy: ServedPolicy) -> None:
        await self.replicas[base].prepare(policy)

    async def drain(self) -> None:
        """Let what is in work finish before the replicas below are stopped; called by whoever stops the service."""
        await self.gate.close(self.settings.request_timeout_s)

    @api.head("/healthz", include_in_schema=False)
    @api.get("/healthz")
    async def health(self) -> dict[str, str]:
        """200: this process answers."""
        return {"status": "ok"}

    @api.head("/readyz", include_in_schema=False)
    @api.get("/readyz")
    async def ready(self) -> JSONResponse:
        """200 where every base model is loaded and answers, else 503."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await asyncio.gather(*(replicas.describe() for replicas in self.replicas.values()))
                await self.names.refresh()
        except TimeoutError as error:
            raise ApiError("a model does not answer", status=503) from error
        versions = {name: served.current.version for name, served in self.names.names.items()}
        return JSONResponse({"status": "ok", "models": versions})

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics(self, http: Request) -> Response:
        """Counters for Prometheus."""
        self.gate.check(http)
        return PlainTextResponse(render())

    @api.get("/v1/models")
    async def models(self, http: Request) -> dict[str, Any]:
        """What can be asked for; the first is the default."""
        self.gate.check(http)
        await self.names.refresh()
        return {"object": "list", "data": [await self._card(*item) for item in self.names.names.items()]}

    @api.get("/v1/models/{name}")
    async def model(self, name: str, http: Request) -> dict[str, Any]:
        """One of them."""
        self.gate.check(http)
        await self.names.refresh()
        return await self._card(*self.names.choose(name, None)[:2])

    async def _card(self, name: str, model: ServedName) -> dict[str, Any]:
        served = await self.replicas[model.base].served()
        base = base_name(model.base)
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "prefpaint-ray",
            "base": base if model.current.folder is not None and base in self.names.names else None,
            "policy_version": model.current.version,
            "canary": {"policy_version": model.canary.version, "share": model.canary_share} if model.canary else None,
            "has_reward": served.has_reward,
            "native_px": served.native_px,
        }

    @api.get("/v1/files/{name}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def file(self, name: str) -> Response:
        """An image that was answered as a URL; whoever knows its name may fetch it."""
        data = await asyncio.to_thread(self.store.get, name) if self.store is not None else None
        if data is None:
            raise ApiError("there is no such file, or it is older than an hour", code="file_not_found", status=404)
        return Response(data, media_type=f"image/{name.rpartition('.')[2]}")

    @api.post(
        "/v1/images/edits",
        openapi_extra={"requestBody": describe_body()},
        responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}, 400: {}, 404: {}, 429: {}},
    )
    async def edit(self, http: Request) -> Response:
        """Repaint what `mask` marks, or the transparent part of `image`, or a border that `expand` adds."""
        client = self.gate.check(http)
        with ExitStack() as places:
            edit = await self._read(http, places)
            files_url = (self.settings.public_url or str(http.base_url).rstrip("/")) + "/v1/files/"
            answers = Answers(edit.asked, edit.upload, edit.region, self.store, files_url)
            if edit.asked.stream:
                kept = places.pop_all()
                stream = self._stream(edit, answers, client, kept)
                response = StreamingResponse(stream, media_type="text/event-stream", headers=edit.headers)
                # A client that is gone already leaves a stream that never begins, and so never ends.
                weakref.finalize(response, kept.close)
                return response
            painted = [told async for told in self._paint(edit, client) if isinstance(told, Painted)]
            body = await asyncio.to_thread(answers.body, painted[0])
        return JSONResponse(body, headers=edit.headers | {"server-timing": to_timing(painted[0])})

    async def _read(self, http: Request, places: ExitStack) -> Edit:
        """Receive a request and check it; ApiError or RequestValidationError for whatever cannot be answered."""
        try:
            with self.gate.upload():
                async with asyncio.timeout(self.settings.upload_timeout_s):
                    received = await receive_edit(http)
                places.enter_context(self.gate.place())
        except TimeoutError as error:
            message = f"the request took longer than {self.settings.upload_timeout_s:g} s to arrive"
            raise ApiError(message, code="upload_timeout", status=408) from error
        await self.names.refresh()
        asked = received.request
        chosen = self.names.choose(asked.model, asked.policy_version)
        served = await self.replicas[chosen[1].base].served()
        if asked.best_of is not None and not served.has_reward:
            raise ApiError("best_of: no reward model is served, so samples cannot be ranked", param="best_of")
        if served.reads_captions and not asked.prompt.strip():
            raise ApiError("prompt: the reward that is served compares images with texts; send one", param="prompt")
        if asked.response_format == "url" and self.store is None:
            message = "response_format: no store is configured; use b64_json, or start the service with --store"
            raise ApiError(message, param="response_format")
        pixels = count_pixels(received.image, received.mask, expand=asked.expand)
        pixels = max(pixels, asked.answer_pixels)
        places.enter_context(self.gate.room(pixels * (1 + (asked.best_of or asked.n))))
        return await asyncio.to_thread(read_edit, received, chosen, served)

    async def _paint(self, edit: Edit, client: str) -> AsyncIterator[Estimate | Painted]:
        """Estimates and at last what was painted, within the time that a request may take."""
        send = self.replicas[edit.base].inpaint
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                async for told in paint(edit.upload, edit.passes, edit.job(), edit.served.native_px, send):
                    if isinstance(told, Painted):
                        refuse_unsafe(told)
                        observe(told, edit.name, edit.policy.version)
                        log_answer(edit, told, client, time.perf_counter() - started)
                    yield told
        except TimeoutError as error:
            message = f"not done within {self.settings.request_timeout_s:g} s; ask for fewer images or steps"
            raise ApiError(message, code="request_timeout", status=408) from error

    async def _stream(self, edit: Edit, answers: Answers, client: str, kept: ExitStack) -> AsyncIterator[bytes]:
        """Server-sent events; what fails after the first byte is an event too."""
        with kept:
            try:
                async for told in self._paint(edit, client):
                    for event in await asyncio.to_thread(answers.events, told):
                        yield event
            except (ApiError, UserError) as error:
                refusal = error if isinstance(error, ApiError) else to_api_error(error)
                yield to_event("error", {"error": refusal.record()})
