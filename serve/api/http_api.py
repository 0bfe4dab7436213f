"""The HTTP interface: OpenAI's image edits, in front of the deployments that hold base models and policies."""

import asyncio
import math
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
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
from serve.api.admission import Admission
from serve.api.answers import Answers, to_event, to_timing
from serve.api.api_errors import (
    ApiError,
    answer_api_error,
    answer_failure,
    answer_http_error,
    answer_invalid_form,
    answer_user_error,
    to_api_error,
)
from serve.api.api_keys import load_api_keys
from serve.api.decoder import Decoder
from serve.api.edit_page import add_page
from serve.api.edit_request import EditRequest, describe_body
from serve.api.guard import Guard, Rules
from serve.api.image_store import ImageStore
from serve.api.painting import Edit, EditProgress, PaintedEdit, paint, plan_edit
from serve.api.replicas import Replicas
from serve.api.request_metrics import Measured, counting_failures, record_edit, render
from serve.api.served_names import ServedNames
from serve.api.upload import MAX_UPLOAD_BYTES, Parts, open_upload
from serve.engine.jobs import Served
from serve.settings import ServiceSettings

HEALTH_TIMEOUT_S = 10.0
"""Seconds within which every model must answer a readiness check."""

api = FastAPI(title="prefpaint-ray", docs_url=None, redoc_url=None)
api.add_middleware(Guard, rules=Rules(body_bytes=2 * MAX_UPLOAD_BYTES * 4 // 3 + 1_000_000, json_items=200))
api.add_middleware(Measured)
api.exception_handler(ApiError)(answer_api_error)
api.exception_handler(RequestValidationError)(answer_invalid_form)
api.exception_handler(HTTPException)(answer_http_error)
api.exception_handler(UserError)(answer_user_error)
api.exception_handler(Exception)(answer_failure)
add_page(api)


# Ray freezes the routes when it decorates the class, so everything that they call is defined above it.
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
    """The HTTP interface: receives uploads, has them painted tile by tile, and answers the finished photographs."""

    def __init__(self, handles: dict[str, DeploymentHandle], catalogue: Catalogue, settings: ServiceSettings) -> None:
        self.settings = settings
        self.replicas = {base: Replicas(handle) for base, handle in handles.items()}
        self.names = ServedNames(catalogue, settings.catalogue, set(handles), self._prepare)
        keys = load_api_keys(settings.api_keys)
        copies = settings.ingress_replicas or 1
        self.copy = ray_serve.get_replica_context().replica_id.unique_id if copies > 1 else None
        places = math.ceil(settings.max_waiting / copies)
        self.admission = Admission(keys, places, settings.max_megapixels, settings.upload_timeout_s)
        self.decoder = Decoder()
        self.decoder.start()
        self.store = ImageStore(settings.store) if settings.store is not None else None
        self.created = int(time.time())

    async def _prepare(self, base: str, policy: ServedPolicy) -> None:
        await self.replicas[base].prepare(policy)

    async def drain(self) -> None:
        """Refuses new requests and waits for those in work; the replicas must be stopped after it."""
        await self.admission.close(self.settings.request_timeout_s)

    @api.head("/healthz", include_in_schema=False)
    @api.get("/healthz")
    async def health(self) -> dict[str, str]:
        """200 if this process answers."""
        return {"status": "ok"}

    @api.head("/readyz", include_in_schema=False)
    @api.get("/readyz")
    async def ready(self) -> JSONResponse:
        """200 if every base model is loaded and answers, else 503."""
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
        """Metrics in Prometheus' text format."""
        self.admission.check(http)
        return PlainTextResponse(render(self.copy))

    @api.get("/v1/models")
    async def models(self, http: Request) -> dict[str, Any]:
        """The models that are served; the first is the default."""
        self.admission.check(http)
        await self.names.refresh()
        return {"object": "list", "data": [await self._card(*item) for item in self.names.names.items()]}

    @api.get("/v1/models/{name}")
    async def model(self, name: str, http: Request) -> dict[str, Any]:
        """One of the models that are served."""
        self.admission.check(http)
        await self.names.refresh()
        chosen = self.names.choose(name, None)
        return await self._card(chosen.name, chosen.served)

    async def _card(self, name: str, model: ServedName) -> dict[str, Any]:
        served = await self.replicas[model.base].served()
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "prefpaint-ray",
            "base": self.names.find_base(model),
            "policy_version": model.current.version,
            "canary": {"policy_version": model.canary.version, "share": model.canary_share} if model.canary else None,
            "has_reward": served.has_reward,
            "native_px": served.native_px,
            "reads": served.reads(),
        }

    @api.get("/v1/files/{name}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def file(self, name: str) -> Response:
        """An image that was answered as a URL; its name is the only key to it."""
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
        client = self.admission.check(http)
        with ExitStack() as held:
            parts = await self.admission.admit(http, held)
            deadline = asyncio.get_running_loop().time() + self.settings.request_timeout_s
            async with self._until(deadline):
                edit = await self._plan(parts, held)
            files_url = (self.settings.public_url or str(http.base_url).rstrip("/")) + "/v1/files/"
            answers = Answers(edit, self.store, files_url)
            if edit.asked.stream:
                kept = held.pop_all()
                stream = self._stream(edit, answers, client, deadline, kept)
                response = StreamingResponse(stream, media_type="text/event-stream", headers=answers.headers)
                # If the client is gone already, the stream never begins, and so never closes what it holds.
                weakref.finalize(response, kept.close)
                return response
            painted = [event async for event in self._paint(edit, client, deadline) if isinstance(event, PaintedEdit)]
            body = await asyncio.to_thread(answers.body, painted[0])
        return JSONResponse(body, headers=answers.headers | {"server-timing": to_timing(painted[0])})

    async def _plan(self, parts: Parts, held: ExitStack) -> Edit:
        """Decodes the pictures and chooses the policy that paints; memory is freed when `held` closes.

        Raises ApiError if the pictures do not fit, or the service or the policy cannot do what is asked.
        """
        await self.names.refresh()
        chosen = self.names.choose(parts.asked.model, parts.asked.policy_version)
        served = await self.replicas[chosen.served.base].served()
        self._check(parts.asked, served)
        upload = await open_upload(parts, self.decoder)
        held.enter_context(self.admission.memory(upload.pixels_in_work))
        canvas = await upload.decode(self.decoder)
        return await asyncio.to_thread(plan_edit, parts.asked, canvas, chosen, served.sizes)

    @asynccontextmanager
    async def _until(self, deadline: float) -> AsyncIterator[None]:
        """Raises ApiError 408 at a time of the event loop's clock."""
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError as error:
            message = f"not done within {self.settings.request_timeout_s:g} s; ask for fewer images or steps"
            raise ApiError(message, code="request_timeout", status=408) from error

    def _check(self, asked: EditRequest, served: Served) -> None:
        if asked.best_of is not None and not served.has_reward:
            raise ApiError("best_of: no reward model is served, so samples cannot be ranked", param="best_of")
        if served.reads_captions and not asked.prompt.strip():
            raise ApiError("prompt: the reward that is served compares images with texts; send one", param="prompt")
        if not served.takes(asked.guidance_scale):
            message = (
                f"guidance_scale: this model has no pass without the prompt; {served.unguided_scale:g} has it read the "
                "prompt, see GET /v1/models"
            )
            raise ApiError(message, param="guidance_scale", code="invalid_value")
        if asked.response_format == "url" and self.store is None:
            message = "response_format: no store is configured; use b64_json, or start the service with --store"
            raise ApiError(message, param="response_format")

    async def _paint(self, edit: Edit, client: str, deadline: float) -> AsyncIterator[EditProgress | PaintedEdit]:
        """Yields previews and at last what was painted. Raises ApiError 408 at the deadline."""
        started = time.perf_counter()
        with counting_failures(edit):
            async with self._until(deadline):
                async for event in paint(edit, self.replicas[edit.base].inpaint):
                    if isinstance(event, PaintedEdit):
                        record_edit(edit, event, client, time.perf_counter() - started)
                    yield event

    async def _stream(
        self, edit: Edit, answers: Answers, client: str, deadline: float, kept: ExitStack
    ) -> AsyncIterator[bytes]:
        """Yields server-sent events; a failure after the first byte is an event too."""
        with kept:
            try:
                async for painted in self._paint(edit, client, deadline):
                    for event in await asyncio.to_thread(answers.events, painted):
                        yield event
            except (ApiError, UserError) as error:
                refusal = error if isinstance(error, ApiError) else to_api_error(error)
                yield to_event("error", {"error": refusal.record()})
