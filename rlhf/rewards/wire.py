"""Messages between `kind: http` and a reward server: JSON, with images as PNG."""

import base64
import binascii
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlhf.errors import UserError
from rlhf.storage.images import decode_image, decode_mask, encode_png, image_to_tensor, mask_to_tensor, tensor_to_image

MAX_IMAGES = 64
"""Largest number of images in a request."""
MAX_PIXELS = 80_000_000
"""Most pixels of all images of a request: they are scored at once, as floats. 64 images of 1,024 px have fewer."""


def images_at_once(pixels: int) -> int:
    """Returns how many images of so many pixels a request may have."""
    return max(1, min(MAX_IMAGES, MAX_PIXELS // pixels))


class RewardRequest(BaseModel):
    """Batch to score: three lists of equal length."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)]
    """Base64 of RGB PNGs, all of one size."""
    masks: list[str]
    """Base64 of PNGs of that size, white = repainted."""
    captions: list[str]
    """Captions of the images; "" if there is none."""

    @model_validator(mode="after")
    def _has_equal_lengths(self) -> "RewardRequest":
        if not len(self.images) == len(self.masks) == len(self.captions):
            raise ValueError(
                f"{len(self.images)} images, {len(self.masks)} masks, {len(self.captions)} captions: not equally many"
            )
        return self


class RewardReply(BaseModel):
    """Answer to a batch; further keys are ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True, strict=True)

    rewards: list[float | None]
    """One number per image, in their order; null if the image could not be scored, which refuses the update."""


def encode_request(images: torch.Tensor, masks: torch.Tensor, captions: list[str]) -> RewardRequest:
    """Encodes a batch of at most MAX_IMAGES; exact for images on the 8-bit grid, which those of rollouts are."""
    pictures = [encode_png(tensor_to_image(image)) for image in images]
    holes = [encode_png(tensor_to_image((mask * 2 - 1).expand(3, -1, -1)).convert("L")) for mask in masks]
    return RewardRequest(images=_to_base64(pictures), masks=_to_base64(holes), captions=captions)


def decode_request(request: RewardRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes images [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W]; raises UserError naming an unreadable one."""
    images, masks = [], []
    for index, (picture, hole) in enumerate(zip(request.images, request.masks, strict=True)):
        names = (f"images[{index}]", f"masks[{index}]")
        image = decode_image(_from_base64(picture, names[0]), name=names[0], is_apart=True)
        if len(request.images) > (most := images_at_once(image.width * image.height)):
            size = f"{len(request.images)} images of {image.width}x{image.height}"
            raise UserError(f"{size} are more than {MAX_PIXELS / 1e6:.0f} megapixels; send {most} at a time")
        mask = decode_mask(_from_base64(hole, names[1]), size=image.size, name=names[1], is_apart=True)
        images.append(image_to_tensor(np.asarray(image)))
        masks.append(mask_to_tensor(mask))
        if images[-1].shape != images[0].shape:
            raise UserError(
                f"images[{index}]: {image.width}x{image.height} is not the size of images[0]; make them equal"
            )
    return torch.stack(images), torch.stack(masks)


def _to_base64(files: list[bytes]) -> list[str]:
    return [base64.b64encode(file).decode() for file in files]


def _from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name}: not base64 ({error})") from error
