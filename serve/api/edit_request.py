"""What a client asks of `POST /v1/images/edits`, as a form or as JSON: OpenAI's fields, and ours beside them."""

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from rlhf.config.run_config import EvaluateConfig
from serve.api.api_errors import ApiError
from serve.engine.jobs import MAX_IMAGES

MAX_PROMPT = 32_000
"""Characters, as in OpenAI's interface."""
MAX_EXPAND_PX = 4096
MAX_ENLARGED_PX = 4_000_000
"""Pixels of an answer that is larger than its photograph."""
LONGEST_SIDE = {"jpeg": 65535, "webp": 16383}
"""Pixels, as the formats allow."""
Pixels = Annotated[int, Field(ge=0, le=MAX_EXPAND_PX)]


def _split(value: object) -> object:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 4:
        raise ValueError("needs four numbers of pixels: left,top,right,bottom")
    return parts


def _to_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class EditRequest(BaseModel):
    """Fields of a request but for its pictures; what OpenAI has beyond them is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    """Read only where there is a `guidance_scale`: policies are aligned without text."""
    guidance_scale: Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)] | None = None
    """Classifier-free guidance towards the prompt, for base models that were trained with text; 1 is no guidance."""
    model: str | None = None
    """Name of the model, as `GET /v1/models` gives it; by default the one that is served."""
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    """Images that are answered."""
    best_of: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    """Samples of which the `n` with the highest lower end of the reward's bound are answered, the best first."""
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")] = "auto"
    """`auto`: answers are as large as the photograph, with its extension; `WxH` of the same shape scales them."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """How images are answered; `url` only where the service has a store."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """File format; known pixels come back bit for bit in PNG alone."""
    output_compression: Annotated[int, Field(ge=0, le=100)] = 90
    """Quality of JPEG and WebP."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Of the noise; by default drawn, and answered in the header `x-seed`."""
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] = EvaluateConfig().num_inference_steps
    """Denoising steps; by default those that the policy was compared with."""
    mask_convention: Literal["transparent", "white"] = "transparent"
    """What of `mask` is repainted: its transparent part, or its white one."""
    expand: Annotated[tuple[Pixels, Pixels, Pixels, Pixels], BeforeValidator(_split)] | None = None
    """Pixels added left, at the top, right and at the bottom, and painted: `0,0,128,0`."""
    policy_version: Annotated[str, Field(max_length=64), BeforeValidator(_to_text)] | None = None
    """Of the policy that is to answer, whole or its number alone; refused where it is not served under this name."""
    stream: bool = False
    """Server-sent events: estimates as they come, and each finished image."""
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    """Estimates that are streamed before the end; large holes and few steps may give fewer."""

    @field_validator("best_of")
    @classmethod
    def _holds_n(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of < info.data.get("n", 1):
            raise ValueError("is less than n; ask for n or more")
        return best_of

    @property
    def answer_pixels(self) -> int:
        """Of the size that is asked for; 0 where it is the photograph's."""
        return 0 if self.size == "auto" else math.prod(map(int, self.size.split("x")))

    def answer_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the answer to a photograph of these, extension included; ApiError for another shape."""
        limit = LONGEST_SIDE.get(self.output_format, max(width, height))
        if self.size == "auto" and max(width, height) > limit:
            message = f"output_format: {self.output_format} holds {limit} pixels a side, not {width}x{height}; use png"
            raise ApiError(message, param="output_format", code="invalid_value")
        if self.size == "auto":
            return width, height
        wanted = tuple(map(int, self.size.split("x")))
        if math.prod(wanted) > max(MAX_ENLARGED_PX, width * height):
            message = f"size: {self.size} is larger than the photograph and than {MAX_ENLARGED_PX / 1e6:.0f} megapixels"
            raise ApiError(message, param="size", code="invalid_value")
        # Another shape only where rounding to whole pixels does not explain it.
        if abs(wanted[0] * height - wanted[1] * width) > max(width, height):
            message = f"size: {self.size} has another shape than the photograph, {width}x{height}; use auto, or expand"
            raise ApiError(message, param="size", code="invalid_value")
        return wanted[0], wanted[1]


@dataclass(frozen=True, kw_only=True)
class ReceivedEdit:
    """A request, and the files that came with it."""

    request: EditRequest
    image: bytes
    mask: bytes | None


async def receive_edit(http: Request) -> ReceivedEdit:
    """Read a form or a JSON object; raises ApiError or RequestValidationError naming the field at fault."""
    content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields, files = await (_read_json(http) if content_type == "application/json" else _read_form(http))
    try:
        request = EditRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    if files["image"] is None:
        raise ApiError("image: Field required", param="image", code="missing_required_parameter")
    return ReceivedEdit(request=request, image=files["image"], mask=files["mask"])


Parts = tuple[dict[str, Any], dict[str, bytes | None]]


async def _read_form(http: Request) -> Parts:
    async with http.form(max_files=4, max_fields=64) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
        files: dict[str, bytes | None] = {"image": None, "mask": None}
        for name in files:
            # OpenAI's clients send `image[]` where there may be several; the policy takes one.
            parts = [part for key in (name, f"{name}[]") for part in form.getlist(key)]
            if len(parts) > 1:
                raise ApiError(f"{name}: {len(parts)} files; send one", param=name)
            for part in parts:
                if isinstance(part, str):
                    raise ApiError(f"{name}: is text; send a file", param=name)
                files[name] = await part.read()
    return {name: value for name, value in fields.items() if name not in files}, files


async def _read_json(http: Request) -> Parts:
    try:
        record = json.loads(await http.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ApiError("the body is no JSON object")
    files = {name: _decode(record.pop(name, None), name) for name in ("image", "mask")}
    return {name: value for name, value in record.items() if value is not None}, files


def _decode(value: object, name: str) -> bytes | None:
    """Base64, bare or as a data URL, perhaps in a list of one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    if not isinstance(value, str):
        raise ApiError(f"{name}: is no text; send one picture as base64, or as a data URL", param=name)
    try:
        return base64.b64decode("".join(value.rpartition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{name}: is no base64 ({error})", param=name, code="invalid_base64") from error


def describe_body() -> dict[str, Any]:
    """The request body for the OpenAPI document: one schema, with files as binary in forms and base64 in JSON."""
    fields = EditRequest.model_json_schema(ref_template="#/components/schemas/{model}")

    def schema(**file: str) -> dict[str, Any]:
        pictures = {
            "image": {"type": "string", "description": "The photograph; without `mask` its alpha is one.", **file},
            "mask": {"type": "string", "description": "As large as the photograph; see `mask_convention`.", **file},
        }
        return {"type": "object", "properties": pictures | fields["properties"], "required": ["image"]}

    form, record = schema(format="binary"), schema(contentEncoding="base64")
    return {"content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": record}}}
