"""Answers, streams and refusals in the types of OpenAI's own client, which must validate them without coercion."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from openai.types.shared import ErrorObject
from small_uploads import hole_in, mask_png, png, read_upload
from starlette.exceptions import HTTPException

from rlhf.diffusion.tiles import cut
from rlhf.promotion.catalogue import ServedName, ServedPolicy
from serve.api.answers import Answers
from serve.api.api_errors import (
    ApiError,
    answer_api_error,
    answer_failure,
    answer_http_error,
    answer_invalid_form,
)
from serve.api.edit_request import IGNORED, EditRequest
from serve.api.guard import Guard, Rules
from serve.api.image_store import ImageStore
from serve.api.painting import EditProgress, PaintedEdit, plan_edit
from serve.api.served_names import Chosen
from serve.api.upload import receive_parts
from serve.engine.jobs import SampleScore

IMAGE = png(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8))
MASK = mask_png(hole_in(24, 30, 4, 4, 9, 9))


def answers(folder: Path, **fields: object) -> tuple[Answers, PaintedEdit, EditProgress]:
    """An edit with its finished samples and a preview, all of them the photograph itself."""
    asked = EditRequest.model_validate(fields | {"seed": 0})
    chosen = Chosen("tiny", ServedName(base="tiny"), ServedPolicy())
    edit = plan_edit(asked, read_upload(IMAGE, MASK), chosen, [(64, 64)])
    samples = [cut(edit.canvas, edit.region)] * asked.n
    scores = [SampleScore(reward=1.0, lower=0.5, upper=None)] * asked.n
    painted = PaintedEdit(samples=samples, scores=scores, unsafe=[], jobs=[])
    return Answers(edit, ImageStore(folder), "http://x/"), painted, EditProgress(samples=samples, index=0)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_an_answer_is_an_images_response(tmp_path: Path, output_format: str, response_format: str) -> None:
    given, painted, _ = answers(tmp_path, n=2, output_format=output_format, response_format=response_format)
    body = json.loads(json.dumps(given.body(painted)))
    response = ImagesResponse.model_validate(body, strict=True)
    assert response.usage is not None
    assert response.usage.input_tokens_details.image_tokens == 0
    assert response.usage.output_tokens_details is not None
    assert len(response.data or []) == 2


def test_streamed_events_are_those_of_the_client(tmp_path: Path) -> None:
    given, painted, preview = answers(tmp_path, stream=True, partial_images=1)
    for kind, part in ((ImageEditPartialImageEvent, preview), (ImageEditCompletedEvent, painted)):
        for event in given.events(part):
            name, data = event.decode().rstrip().split("\n")
            record = json.loads(data.removeprefix("data: "))
            assert name == f"event: {record['type']}"
            kind.model_validate(record, strict=True)


def service() -> FastAPI:
    """An application with the service's refusals: `/fail/KIND` fails, and edits are received only."""
    app = FastAPI()
    handlers: dict[Any, Any] = {
        ApiError: answer_api_error,
        RequestValidationError: answer_invalid_form,
        HTTPException: answer_http_error,
        Exception: answer_failure,
    }
    for kind, handler in handlers.items():
        app.exception_handler(kind)(handler)
    app.add_middleware(Guard, rules=Rules(body_bytes=100_000, json_items=200))

    @app.get("/fail/{status}")
    async def fail(status: int) -> None:
        raise ApiError("why", param="n", code="word", status=status) if status != 500 else ZeroDivisionError

    @app.post("/v1/images/edits")
    async def edit(http: Request) -> dict[str, Any]:
        parts = await receive_parts(http)
        return {"mask": parts.mask is not None, "n": parts.asked.n}

    return app


def ask(method: str, path: str, **options: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(service(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def post(files: Any = None, data: Any = None, **options: Any) -> httpx.Response:
    files = {"image": ("i.png", IMAGE), "mask": ("m.png", MASK)} if files is None else files
    return ask("POST", "/v1/images/edits", files=files, data=data or {}, **options)


def test_every_refusal_is_the_clients_error_object() -> None:
    refusals = [ask("GET", f"/fail/{status}") for status in (400, 401, 403, 404, 408, 413, 429, 500, 503)]
    refusals += [ask("GET", "/nowhere"), ask("PUT", "/fail/400"), ask("GET", "/fail/x")]
    refusals += [ask("GET", "/", headers={"origin": "http://[::1"}), ask("GET", "/", headers={"origin": "null"})]
    refusals += [post(data={"n": "many"}), ask("POST", "/v1/images/edits", content=b"x" * 200_000)]
    refusals += [ask("POST", "/v1/images/edits", json=[[]] * 500)]
    for refused in refusals:
        assert refused.status_code >= 400
        error = ErrorObject.model_validate(refused.json()["error"], strict=True)
        assert error.message
        assert refused.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_further_image_or_markup_is_refused_by_name() -> None:
    image, mask = ("i.png", IMAGE), ("m.png", MASK)
    for files, param in (
        ([("image[]", image), ("image[]", image)], "image"),
        ([("image", image), ("image[]", image)], "image"),
        ([("image", image), ("image[1]", image)], "image[1]"),
        ([("image", image), ("image_2", image)], "image_2"),
        ([("image", image), ("mask", mask), ("mask", mask)], "mask"),
        ([("image", image), ("mask", mask), ("markup", image)], "markup"),
    ):
        refused = post(files)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    picture = base64.b64encode(IMAGE).decode()
    for record, param in (
        ({"image": [picture, picture]}, "image"),
        ({"image": picture, "markup": picture}, "markup"),
        ({"image": picture, "images": [{"image_url": picture}]}, "images"),
    ):
        refused = ask("POST", "/v1/images/edits", json=record)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_fields_that_change_nothing_may_be_sent_and_unknown_ones_may_not() -> None:
    assert post(data=dict.fromkeys(IGNORED, "low")).status_code == 200
    refused = post(data={"num_infrence_steps": "3"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "num_infrence_steps")


def test_streamed_urls_are_refused() -> None:
    refused = post(data={"stream": "true", "response_format": "url"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")


def test_an_empty_file_field_is_no_file() -> None:
    files = {"image": ("i.png", IMAGE), "mask": ("", b"", "application/octet-stream")}
    for given in (files, files | {"mask": ("m.png", b"")}):
        assert post(given).json() == {"mask": False, "n": 1}
    assert post({"image": ("i.png", IMAGE)}, data={"mask": ""}).json() == {"mask": False, "n": 1}
    picture = base64.b64encode(IMAGE).decode()
    for empty in ("", None):
        answer = ask("POST", "/v1/images/edits", json={"image": picture, "mask": empty})
        assert answer.json() == {"mask": False, "n": 1}
    refused = post({"image": ("", b"")})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image")


def test_the_client_raises_its_own_error_for_a_refusal_in_a_stream() -> None:
    from serve.api.answers import to_event

    event = to_event("error", {"error": ApiError("why", code="word", status=503).record()})

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=event, headers={"content-type": "text/event-stream"})

    client = openai.OpenAI(api_key="x", http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    with pytest.raises(openai.APIError, match="why") as refused:
        list(client.images.edit(image=("i.png", IMAGE), prompt="", stream=True))
    assert refused.value.code == "word"
