"""The HTTP interface: OpenAI's image edits, in front of the deployment that holds the policy."""

import asyncio
import base64
import io
import math
import random
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from ray import serve as ray_serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from rlhf.images import encode_png
from serve.api_errors import (
    ApiError,
    BodyLimit,
    answer_api_error,
    answer_failure,
    answer_http_error,
    answer_invalid_form,
)
from serve.crops import Box, crop_box, crop_to_native, paste_back
from serve.edit_page import add_page
from serve.edit_request import EditRequest, describe_body, receive_edit
from serve.jobs import Inpainted, Job, Served
from serve.uploads import MAX_UPLOAD_BYTES, Upload, read_upload

HEALTH_TIMEOUT_S = 10.0

api = FastAPI(title="prefpaint-ray")
api.add_middleware(BodyLimit, limit_bytes=2 * MAX_UPLOAD_BYTES * 4 // 3 + 1_000_000)
api.exception_handler(ApiError)(answer_api_error)
api.exception_handler(RequestValidationError)(answer_invalid_form)
api.exception_handler(HTTPException)(answer_http_error)
api.exception_handler(Exception)(answer_failure)
add_page(api)


def _to_data(upload: Upload, box: Box, answer: Inpainted, asked: EditRequest) -> list[dict[str, Any]]:
    scores = answer.scores or ({},) * len(answer.images)
    order = list(range(len(answer.images)))
    if asked.best_of is not None:
        lower = [-math.inf if score["lower"] is None else score["lower"] for score in answer.scores]
        order.sort(key=lambda i: lower[i], reverse=True)
    files = (_encode(paste_back(upload, box, answer.images[i]), asked) for i in order[: asked.n])
    return [{"b64_json": base64.b64encode(file).decode(), **scores[i]} for i, file in zip(order, files, strict=False)]


def _encode(image: Image.Image, asked: EditRequest) -> bytes:
    size = asked.answer_size(*image.size)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if asked.output_format == "png":
        return encode_png(image)
    buffer = io.BytesIO()
    if asked.output_format == "jpeg" and image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.save(buffer, format=asked.output_format, quality=asked.output_compression)
    return buffer.getvalue()


def _check_served(asked: EditRequest, served: Served) -> None:
    if asked.policy_version not in (None, served.policy_version):
        message = f"policy version {asked.policy_version} is not served; {served.policy_version} is"
        raise ApiError(message, param="policy_version", code="policy_version_not_found", status=404)
    if asked.best_of is not None and not served.has_reward:
        raise ApiError("best_of: no reward model is served, so samples cannot be ranked", param="best_of")


# Ray freezes the routes when it decorates the class: all that they call stands above it.
@ray_serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0}, max_constructor_retry_count=1)
@ray_serve.ingress(api)
class Api:
    """The HTTP interface: reads uploads, cuts them to size, and puts the answers back."""

    def __init__(self, inpainter: DeploymentHandle, model_id: str) -> None:
        self.inpainter = inpainter
        self.model_id = model_id
        self.created = int(time.time())

    @api.get("/healthz")
    @api.get("/readyz")
    async def health(self) -> JSONResponse:
        """200 where the policy is loaded and answers, else 503."""
        try:
            served = await asyncio.wait_for(self._describe(), HEALTH_TIMEOUT_S)
        except (TimeoutError, BackPressureError) as error:
            raise ApiError("the policy does not answer", status=503) from error
        return JSONResponse({"status": "ok", "policy_version": served.policy_version})

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """The one model that is served."""
        model = {"id": self.model_id, "object": "model", "created": self.created, "owned_by": "prefpaint-ray"}
        return {"object": "list", "data": [model]}

    @api.post("/v1/images/edits", openapi_extra={"requestBody": describe_body()})
    async def edit(self, http: Request) -> JSONResponse:
        """Repaint what `mask` marks, or the transparent part of `image`, or a border that `expand` adds."""
        received = await receive_edit(http)
        asked = received.request
        if asked.model not in (None, self.model_id):
            message = f"model {asked.model!r} is not served here; {self.model_id!r} is"
            raise ApiError(message, param="model", code="model_not_found", status=404)
        convention, expand = asked.mask_convention, asked.expand
        upload = await asyncio.to_thread(
            read_upload, received.image, received.mask, convention=convention, expand=expand
        )
        width, height = asked.answer_size(upload.hole.shape[1], upload.hole.shape[0])
        seed = random.randrange(2**31) if asked.seed is None else asked.seed
        answer, box = await self._inpaint(upload, asked, seed)
        data = await asyncio.to_thread(_to_data, upload, box, answer, asked)
        shape = {"size": f"{width}x{height}", "output_format": asked.output_format}
        headers = {"x-policy-version": str(answer.policy_version), "x-seed": str(seed)}
        return JSONResponse({"created": int(time.time()), **shape, "data": data}, headers=headers)

    async def _inpaint(self, upload: Upload, asked: EditRequest, seed: int) -> tuple[Inpainted, Box]:
        try:
            served = await self._describe()
            _check_served(asked, served)
            box = crop_box(upload.hole, served.native_px)
            image, hole = await asyncio.to_thread(crop_to_native, upload, box, served.native_px)
            count, steps = asked.best_of or asked.n, asked.num_inference_steps
            job = Job(image=image, hole=hole, n=count, seed=seed, num_inference_steps=steps)
            return await self.inpainter.inpaint.remote(job), box
        except BackPressureError as error:
            raise ApiError("too many requests are waiting; try again", code="overloaded", status=429) from error

    async def _describe(self) -> Served:
        return await self.inpainter.describe.remote()
