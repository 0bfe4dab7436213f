"""Receives an edit request, opens its pictures once, and decodes them to a photograph with a hole."""

import base64
import binascii
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from PIL import ImageOps
from pydantic import ValidationError

from rlhf.diffusion.tiles import Canvas
from rlhf.errors import UserError
from rlhf.storage.images import MAX_PIXELS, open_image, to_rgb, unreadable_as_user_error
from serve.api.api_errors import ApiError
from serve.api.edit_request import EditRequest

MAX_UPLOAD_BYTES = 25_000_000
"""Largest uploaded file, as received."""
OPAQUE_FROM = 128
"""Smallest alpha of a known pixel; smaller alpha is a hole, as in OpenAI's interface."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The decoded pixels of a picture, upright."""

    on_white: np.ndarray
    """uint8 [H, W, 3], transparency composited on white."""
    colours: np.ndarray
    """uint8 [H, W, 3], as stored, whatever the alpha."""
    alpha: np.ndarray | None
    """uint8 [H, W]; None if the file has no transparency."""

    @property
    def opacity(self) -> np.ndarray:
        """The alpha, 255 everywhere if the file has none."""
        return np.full(self.colours.shape[:2], 255, np.uint8) if self.alpha is None else self.alpha


class Picture:
    """One uploaded picture, opened but not yet decoded."""

    def __init__(self, data: bytes, param: str) -> None:
        """Reads the header. Raises ApiError, naming the field `param`, if the file is unreadable or too large."""
        if len(data) > MAX_UPLOAD_BYTES:
            message = f"{param}: {len(data) / 1e6:.1f} MB is more than {MAX_UPLOAD_BYTES / 1e6:.0f} MB"
            raise ApiError(message, param=param, code=f"{param}_too_large", status=413)
        self.data, self.param = data, param
        try:
            self._opened = open_image(data, param)
        except UserError as error:
            raise ApiError(str(error), param=param, code="invalid_image") from error

    @property
    def size(self) -> tuple[int, int]:
        """Width and height by the header, in pixels, before the picture is turned upright."""
        return self._opened.size

    def decode(self) -> Pixels:
        """Reads the pixels. Raises ApiError if the file is damaged or holds several pictures."""
        opened = self._opened
        try:
            with unreadable_as_user_error(self.param), opened:
                # Phones' JPEGs hold several pictures (MPO); the first is the photograph.
                if getattr(opened, "is_animated", False) and opened.format != "MPO":
                    raise UserError(f"{self.param}: holds several pictures; send one")
                has_alpha = "A" in opened.mode or "transparency" in opened.info
                upright = ImageOps.exif_transpose(opened)
                on_white = np.asarray(to_rgb(upright))
                rgba = np.asarray(upright.convert("RGBA")) if has_alpha else None
        except UserError as error:
            raise ApiError(str(error), param=self.param, code="invalid_image") from error
        if rgba is None:
            return Pixels(on_white=on_white, colours=on_white, alpha=None)
        return Pixels(on_white=on_white, colours=rgba[..., :3], alpha=rgba[..., 3])


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One edit request as received: its fields, and its pictures before decoding."""

    asked: EditRequest
    image: Picture
    mask: Picture | None

    @property
    def pixels(self) -> int:
        """Number of pixels of the extended photograph and the mask, by their headers."""
        left, top, right, bottom = self.asked.expand or (0, 0, 0, 0)
        width, height = self.image.size
        return (width + left + right) * (height + top + bottom) + math.prod(self.mask.size if self.mask else (0,))

    @property
    def pixels_in_work(self) -> int:
        """Number of decoded pixels that the request holds in memory, each sample counted."""
        return max(self.pixels, self.asked.answer_pixels) * (1 + (self.asked.best_of or self.asked.n))

    def decode(self) -> Canvas:
        """Decodes the photograph and its hole, with the border that `expand` adds.

        The hole is the part of `mask` that `mask_convention` names, or the transparent part of the photograph. With
        `expand` no other hole is needed. Raises ApiError, naming the field, if a picture is unreadable, the sizes
        differ, or the hole is empty or everything.
        """
        image = self.image.decode()
        hole = self._read_hole(image)
        left, top, right, bottom = self.asked.expand or (0, 0, 0, 0)
        height, width = hole.shape
        if (height + top + bottom) * (width + left + right) > MAX_PIXELS:
            raise ApiError(f"expand: more than {MAX_PIXELS / 1e6:.0f} megapixels; add less", param="expand")
        sides = ((top, bottom), (left, right))
        rgba = np.dstack([image.colours, image.opacity])
        return Canvas(
            rgb=np.pad(image.on_white, (*sides, (0, 0)), constant_values=255),
            rgba=np.pad(rgba, (*sides, (0, 0)), constant_values=255),
            hole=np.pad(hole, sides, constant_values=True),
        )

    def _read_hole(self, image: Pixels) -> np.ndarray:
        """Bool [H, W]; all False only if the request extends the photograph."""
        is_optional = any(self.asked.expand or ())
        param, word, marked = "image", "transparent", image.alpha
        if self.mask is not None:
            param, word = "mask", self.asked.mask_convention
            mask = self.mask.decode()
            # White strokes on a transparent layer count as white; white hidden under transparency does not.
            marked = mask.alpha if word == "transparent" else 255 - np.minimum(mask.colours.min(axis=2), mask.opacity)
        elif marked is None and is_optional:
            return np.zeros(image.on_white.shape[:2], bool)
        if marked is None:
            raise ApiError(f"{param}: has no transparency; make the pixels to repaint transparent", param=param)
        if marked.shape != image.on_white.shape[:2]:
            sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (marked, image.on_white)]
            raise ApiError(f"mask is {sizes[0]}, image is {sizes[1]}; make them equal", param=param)
        hole = marked < OPAQUE_FROM
        if not hole.any() and not is_optional:
            raise ApiError(f"{param}: no pixel is {word}; make the pixels to repaint {word}", param=param)
        if hole.all():
            raise ApiError(f"{param}: every pixel is {word}; leave some that are known", param=param)
        return hole


async def receive_upload(http: Request) -> Upload:
    """Reads a form or a JSON object. Raises ApiError or RequestValidationError, naming the field at fault."""
    content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    fields, files = await (_read_json(http) if content_type == "application/json" else _read_form(http))
    try:
        asked = EditRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    if files["image"] is None:
        raise ApiError("image: Field required", param="image", code="missing_required_parameter")
    return open_upload(files["image"], files["mask"], asked)


def open_upload(image: bytes, mask: bytes | None, asked: EditRequest) -> Upload:
    """Opens the files of a request. Raises ApiError if one is unreadable or too large."""
    return Upload(asked=asked, image=Picture(image, "image"), mask=None if mask is None else Picture(mask, "mask"))


Parts = tuple[dict[str, Any], dict[str, bytes | None]]
"""The fields of a request, and its files by name."""


async def _read_form(http: Request) -> Parts:
    async with http.form(max_files=4, max_fields=64) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str) and value != ""}
        files: dict[str, bytes | None] = {"image": None, "mask": None}
        for name in files:
            # OpenAI's clients send `image[]` if there may be several; the policy takes one.
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
    files = {name: _from_base64(record.pop(name, None), name) for name in ("image", "mask")}
    return {name: value for name, value in record.items() if value is not None}, files


def _from_base64(value: object, name: str) -> bytes | None:
    """Decodes base64, bare or as a data URL, also inside a list of one."""
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
