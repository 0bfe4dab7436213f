"""Receives an edit request, and has its pictures decoded to a photograph with a hole."""

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from rlhf.diffusion.tiles import Canvas
from rlhf.errors import UserError
from rlhf.storage.decoding import Header, put_on_white
from serve.api.api_errors import ApiError
from serve.api.decoder import MAX_PICTURE_PX, Decoder
from serve.api.edit_request import IGNORED, EditRequest

MAX_UPLOAD_BYTES = 25_000_000
"""Largest uploaded file, as received."""
MAX_FIELDS, MAX_FILES = 64, 4
"""Most fields and files of a form."""
OPAQUE_FROM = 128
"""Smallest alpha of a known pixel; smaller alpha is a hole, as in OpenAI's interface."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One edit request as received: its fields, and its files as they came."""

    asked: EditRequest
    image: bytes
    mask: bytes | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One uploaded picture, whose head was read."""

    data: bytes
    param: str
    """Name of its field."""
    header: Header


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An edit request whose pictures have been looked at, but not decoded."""

    asked: EditRequest
    image: Picture
    mask: Picture | None

    @property
    def pixels(self) -> int:
        """Number of pixels of the extended photograph and the mask, by their headers."""
        left, top, right, bottom = self.asked.expand or (0, 0, 0, 0)
        width, height = self.image.header.width, self.image.header.height
        return (width + left + right) * (height + top + bottom) + (self.mask.header.pixels if self.mask else 0)

    @property
    def pixels_in_work(self) -> int:
        """Number of decoded pixels that the request holds in memory, each sample counted."""
        return max(self.pixels, self.asked.answer_pixels) * (1 + (self.asked.best_of or self.asked.n))

    async def decode(self, decoder: Decoder) -> Canvas:
        """Decodes the photograph and its hole, with the border that `expand` adds.

        The hole is the part of `mask` that `mask_convention` names, or the transparent part of the photograph. With
        `expand` no other hole is needed. Raises ApiError, naming the field, if a picture is unreadable, the sizes
        differ, or the hole is empty or everything.
        """
        pictures = [picture for picture in (self.image, self.mask) if picture is not None]
        layers = [await _decode(decoder, picture) for picture in pictures]
        return await asyncio.to_thread(self._to_canvas, layers[0], layers[1] if len(layers) > 1 else None)

    def _to_canvas(self, image: np.ndarray, mask: np.ndarray | None) -> Canvas:
        hole = self._read_hole(image, mask)
        left, top, right, bottom = self.asked.expand or (0, 0, 0, 0)
        height, width = hole.shape
        if (height + top + bottom) * (width + left + right) > MAX_PICTURE_PX:
            raise ApiError(f"expand: more than {MAX_PICTURE_PX / 1e6:.0f} megapixels; add less", param="expand")
        rgb, rgba = put_on_white(image), image
        if rgba.shape[2] == 3:
            rgba = np.dstack([image, np.full(hole.shape, 255, np.uint8)])
        if any((left, top, right, bottom)):
            sides = ((top, bottom), (left, right))
            rgb, rgba = (np.pad(layers, (*sides, (0, 0)), constant_values=255) for layers in (rgb, rgba))
            hole = np.pad(hole, sides, constant_values=True)
        return Canvas(rgb=rgb, rgba=rgba, hole=hole)

    def _read_hole(self, image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """Bool [H, W]; all False only if the request extends the photograph."""
        is_optional = any(self.asked.expand or ())
        param, word = ("image", "transparent") if mask is None else ("mask", self.asked.mask_convention)
        marked = _marks(image if mask is None else mask, word)
        if marked is None and mask is None and is_optional:
            return np.zeros(image.shape[:2], bool)
        if marked is None:
            raise ApiError(f"{param}: has no transparency; make the pixels to repaint transparent", param=param)
        if marked.shape != image.shape[:2]:
            sizes = [f"{a.shape[1]}x{a.shape[0]}" for a in (marked, image)]
            raise ApiError(f"mask is {sizes[0]}, image is {sizes[1]}; make them equal", param=param)
        hole = marked < OPAQUE_FROM
        if not hole.any() and not is_optional:
            raise ApiError(f"{param}: no pixel is {word}; make the pixels to repaint {word}", param=param)
        if hole.all():
            raise ApiError(f"{param}: every pixel is {word}; leave some that are known", param=param)
        return hole


def _marks(layers: np.ndarray, word: str) -> np.ndarray | None:
    """Uint8 [H, W], below OPAQUE_FROM where a picture marks a hole; None if it has no transparency to mark it with."""
    alpha = layers[..., 3] if layers.shape[2] == 4 else None
    if word == "transparent":
        return alpha
    # White strokes on a transparent layer count as white; white hidden under transparency does not.
    whiteness = layers[..., :3].min(axis=2)
    return 255 - (whiteness if alpha is None else np.minimum(whiteness, alpha))


async def open_upload(parts: Parts, decoder: Decoder) -> Upload:
    """Reads the heads of the files. Raises ApiError, naming the field, if one is unreadable or too large."""
    image = await _open(decoder, parts.image, "image")
    mask = None if parts.mask is None else await _open(decoder, parts.mask, "mask")
    return Upload(asked=parts.asked, image=image, mask=mask)


async def _open(decoder: Decoder, data: bytes, param: str) -> Picture:
    if len(data) > MAX_UPLOAD_BYTES:
        message = f"{param}: {len(data) / 1e6:.1f} MB is more than {MAX_UPLOAD_BYTES / 1e6:.0f} MB"
        raise ApiError(message, param=param, code=f"{param}_too_large", status=413)
    with _naming(param):
        return Picture(data=data, param=param, header=await decoder.read_header(data, param))


async def _decode(decoder: Decoder, picture: Picture) -> np.ndarray:
    with _naming(picture.param):
        return await decoder.decode(picture.data, picture.param, picture.header)


@contextmanager
def _naming(param: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise ApiError(str(error), param=param, code="invalid_image") from error


async def receive_parts(http: Request) -> Parts:
    """Reads a form or a JSON object. Raises ApiError or RequestValidationError, naming the field at fault."""
    content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    readers = {"application/json": _read_json, "multipart/form-data": _read_form}
    if content_type not in readers:
        raise ApiError("the body is neither multipart/form-data nor application/json")
    fields, files = await readers[content_type](http)
    try:
        asked = EditRequest.model_validate({name: value for name, value in fields.items() if name not in IGNORED})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    if files["image"] is None:
        raise ApiError("image: Field required", param="image", code="missing_required_parameter")
    return Parts(asked=asked, image=files["image"], mask=files["mask"])


Fields = dict[str, Any]
Files = dict[str, bytes | None]
"""The files `image` and `mask`."""


async def _read_form(http: Request) -> tuple[Fields, Files]:
    async with http.form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
        files: Files = {"image": None, "mask": None}
        names = {name: name for name in files} | {f"{name}[]": name for name in files}
        # A browser sends an empty part for a file that was not chosen; OpenAI's clients send `image[]` for a list.
        given = [(names.get(key, key), value) for key, value in form.multi_items() if not _is_empty(value)]
        for name, value in given:
            if isinstance(value, str):
                if name in files:
                    raise ApiError(f"{name}: is text; send a file", param=name)
            elif name not in files:
                raise ApiError(f"{name}: this file would be ignored; send one image and one mask", param=name)
            elif files[name] is not None:
                raise ApiError(f"{name}: several files; send one", param=name)
            else:
                files[name] = await value.read()
    return {name: value for name, value in given if isinstance(value, str)}, files


def _is_empty(value: UploadFile | str) -> bool:
    return value == "" if isinstance(value, str) else value.size == 0


async def _read_json(http: Request) -> tuple[Fields, Files]:
    body = await http.body()
    try:
        record = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ApiError("the body is no JSON object")
    files = {name: await asyncio.to_thread(_from_base64, record.pop(name, None), name) for name in ("image", "mask")}
    return {name: value for name, value in record.items() if value is not None}, files


def _from_base64(value: object, name: str) -> bytes | None:
    """Decodes base64, bare or as a data URL, also inside a list of one; an empty text is no file."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ApiError(f"{name}: is no text; send one picture as base64, or as a data URL", param=name)
    try:
        return base64.b64decode("".join(value.rpartition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{name}: is no base64 ({error})", param=name, code="invalid_base64") from error
