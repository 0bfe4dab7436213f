"""The HTTP interface: OpenAI's image edits, in front of the deployment that holds the policy."""

import asyncio
import base64
import random
import time
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve as ray_serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from rlhf.config import EvaluateConfig
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
from serve.jobs import MAX_IMAGES, Inpainted, Job
from serve.uploads import MAX_UPLOAD_BYTES, Upload, read_upload

DEFAULT_STEPS = EvaluateConfig().num_inference_steps
"""Denoising steps where a request names none: those that the policy was compared with."""
HEALTH_TIMEOUT_S = 10.0

api = FastAPI(title="prefpaint-ray")
api.add_middleware(BodyLimit, limit_bytes=2 * MAX_UPLOAD_BYTES + 1_000_000)
api.exception_handler(ApiError)(answer_api_error)
api.exception_handler(RequestValidationError)(answer_invalid_form)
api.exception_handler(HTTPException)(answer_http_error)
api.exception_handler(Exception)(answer_failure)


def _to_data(upload: Upload, box: Box, answer: Inpainted) -> list[dict[str, Any]]:
    scores = answer.scores or ({},) * len(answer.images)
    return [
        {"b64_json": base64.b64encode(encode_png(paste_back(upload, box, image))).decode(), **score}
        for image, score in zip(answer.images, scores, strict=True)
    ]


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
    async def health(self) -> JSONResponse:
        """200 where the policy is loaded and answers, else 503."""
        try:
            _, version = await asyncio.wait_for(self._describe(), HEALTH_TIMEOUT_S)
        except (TimeoutError, BackPressureError) as error:
            raise ApiError("the policy does not answer", status=503) from error
        return JSONResponse({"status": "ok", "policy_version": version})

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """The one model that is served."""
        model = {"id": self.model_id, "object": "model", "created": self.created, "owned_by": "prefpaint-ray"}
        return {"object": "list", "data": [model]}

    @api.post("/v1/images/edits")
    async def edit(
        self,
        image: Annotated[UploadFile, File()],
        mask: Annotated[UploadFile | None, File()] = None,
        model: Annotated[str | None, Form()] = None,
        n: Annotated[int, Form(ge=1, le=MAX_IMAGES)] = 1,
        seed: Annotated[int | None, Form(ge=0, lt=2**63)] = None,
        num_inference_steps: Annotated[int, Form(ge=1, le=100)] = DEFAULT_STEPS,
        response_format: Annotated[Literal["b64_json"], Form()] = "b64_json",
    ) -> JSONResponse:
        """Repaint the transparent part of `mask`, or of `image` itself; other fields are not looked at."""
        if model not in (None, "", self.model_id):
            message = f"model {model!r} is not served here; {self.model_id!r} is"
            raise ApiError(message, param="model", code="model_not_found", status=404)
        mask_bytes = await mask.read() if mask is not None else None
        upload = await asyncio.to_thread(read_upload, await image.read(), mask_bytes)
        seed = random.randrange(2**31) if seed is None else seed
        answer, box = await self._inpaint(upload, n=n, seed=seed, num_inference_steps=num_inference_steps)
        data = await asyncio.to_thread(_to_data, upload, box, answer)
        headers = {"x-policy-version": str(answer.policy_version), "x-seed": str(seed)}
        return JSONResponse({"created": int(time.time()), "data": data}, headers=headers)

    async def _inpaint(self, upload: Upload, **settings: int) -> tuple[Inpainted, Box]:
        try:
            native_px, _ = await self._describe()
            box = crop_box(upload.hole, native_px)
            image, hole = await asyncio.to_thread(crop_to_native, upload, box, native_px)
            return await self.inpainter.inpaint.remote(Job(image=image, hole=hole, **settings)), box
        except BackPressureError as error:
            raise ApiError("too many requests are waiting; try again", code="overloaded", status=429) from error

    async def _describe(self) -> tuple[int, int]:
        return await self.inpainter.describe.remote()
