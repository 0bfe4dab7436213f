"""The fields of `POST /v1/images/edits`: OpenAI's, and ours beside them."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rlhf.config.run_config import EvaluateConfig
from serve.api.api_errors import ApiError
from serve.engine.jobs import MAX_IMAGES

MAX_PROMPT = 32_000
"""Longest prompt in characters, as in OpenAI's interface."""
MAX_EXPAND_PX = 4096
"""Widest border that `expand` adds on one side, in pixels."""
MAX_ENLARGED_PX = 4_000_000
"""Most pixels of an answer that is larger than its photograph."""
LONGEST_SIDE = {"jpeg": 65535, "webp": 16383}
"""Longest side that the file format can hold, in pixels."""
IGNORED = {"background", "complexity", "input_fidelity", "moderation", "quality", "safety_identifier", "style", "user"}
"""Fields of OpenAI's interface that may be sent and change nothing here."""
Pixels = Annotated[int, Field(ge=0, le=MAX_EXPAND_PX)]


def _split(value: object) -> object:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) != 4:
        raise ValueError("needs four numbers of pixels: left,top,right,bottom")
    return parts


def _to_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class EditRequest(BaseModel):
    """The fields of a request, without its pictures. IGNORED ones are left out before; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    """Text, read together with `guidance_scale` alone; without it the model paints as for the empty text."""
    guidance_scale: Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)] | None = None
    """Classifier-free guidance towards the prompt; `reads` in `GET /v1/models` has the scales that the model takes, and
    the one that only reads the prompt."""
    model: str | None = None
    """Name of the model, as in `GET /v1/models`; default: the first one there."""
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    """Number of images in the answer."""
    best_of: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    """Number of samples to paint; the answer holds the `n` with the highest lower bound of the reward, best first."""
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")] = "auto"
    """Size of the answer: `auto` keeps that of the photograph with its extension; `WxH` of the same shape scales it."""
    response_format: Literal["b64_json", "url"] = "b64_json"
    """How the answer carries images; `url` needs a service with a store."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """File format; only PNG returns known pixels bit for bit."""
    output_compression: Annotated[int, Field(ge=0, le=100)] = 90
    """Quality of JPEG and WebP."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the noise; default: random, returned in the header `x-seed`."""
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] = EvaluateConfig().num_inference_steps
    """Number of denoising steps; default: the number used in evaluation."""
    mask_convention: Literal["transparent", "white"] = "transparent"
    """Which part of `mask` is repainted."""
    expand: Annotated[tuple[Pixels, Pixels, Pixels, Pixels], BeforeValidator(_split)] | None = None
    """Border to add and paint, in pixels: left, top, right, bottom, such as `0,0,128,0`."""
    policy_version: Annotated[str, Field(max_length=64), BeforeValidator(_to_text)] | None = None
    """Version of the policy that paints, whole or its number alone; refused if not served under this name."""
    stream: bool = False
    """Answer with server-sent events: previews as they come, and each finished image."""
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    """Number of previews to stream; large holes and few steps may give fewer."""

    @model_validator(mode="after")
    def _streams_what_it_can(self) -> "EditRequest":
        if self.stream and self.response_format == "url":
            raise ApiError("response_format: streamed images come as b64_json", param="response_format")
        return self

    @field_validator("best_of")
    @classmethod
    def _holds_n(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of < info.data.get("n", 1):
            raise ValueError("is less than n; ask for n or more")
        return best_of

    @property
    def answer_pixels(self) -> int:
        """Number of pixels in `size`; 0 for `auto`."""
        return 0 if self.size == "auto" else math.prod(map(int, self.size.split("x")))

    def answer_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height of the answer, in pixels, for an extended photograph of `width` x `height`.

        Raises ApiError if the file format cannot hold it, or if `size` is too large or of another shape.
        """
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
        # Rounding to whole pixels may change the shape by up to one pixel.
        if abs(wanted[0] * height - wanted[1] * width) > max(width, height):
            message = f"size: {self.size} has another shape than the photograph, {width}x{height}; use auto, or expand"
            raise ApiError(message, param="size", code="invalid_value")
        return wanted[0], wanted[1]


def describe_body() -> dict[str, Any]:
    """Returns the request body for the OpenAPI document; files are binary in forms and base64 in JSON."""
    fields = EditRequest.model_json_schema(ref_template="#/components/schemas/{model}")

    def schema(**file: str) -> dict[str, Any]:
        pictures = {
            "image": {"type": "string", "description": "The photograph; without `mask` its alpha is one.", **file},
            "mask": {"type": "string", "description": "As large as the photograph; see `mask_convention`.", **file},
        }
        ignored = {"type": "string", "description": "As in OpenAI's interface; it changes nothing here."}
        known = pictures | fields["properties"] | {name: ignored for name in sorted(IGNORED)}
        return {"type": "object", "properties": known, "required": ["image"], "additionalProperties": False}

    form, record = schema(format="binary"), schema(contentEncoding="base64")
    return {"content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": record}}}
