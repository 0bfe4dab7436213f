"""Pictures of the annotation page: the candidates of each prompt and its masked image."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rlhf.errors import UserError
from rlhf.storage.images import (
    blank_hole,
    decode_image,
    decode_mask,
    encode_png,
    image_to_tensor,
    mask_to_tensor,
    tensor_to_image,
)
from rlhf.storage.tables import CANDIDATES, PROMPTS, ImageCell, read_table


@dataclass(frozen=True, kw_only=True)
class AnnotationItems:
    """Encoded pictures of a candidates folder, validated."""

    masked: dict[str, bytes]
    """PNG of each prompt's masked image."""
    masks: dict[str, np.ndarray]
    """Bool [H, W] by prompt, True = repainted."""
    candidates: dict[str, dict[int, bytes]]
    """PNG files by prompt and sample index."""
    fingerprint: str
    """SHA-256 of all prompts and candidates; a database with another fingerprint is refused."""

    @property
    def prompt_ids(self) -> list[str]:
        """Prompts with candidates, in the order of the table."""
        return list(self.candidates)


def load_items(candidates: Path, prompts: Path) -> AnnotationItems:
    """Loads and checks all pictures.

    Raises UserError with the folder or row if a picture is missing, unreadable or of another size.
    """
    if not candidates.is_dir():
        raise UserError(f"{candidates}: no such folder; name one that `rlhf candidates` wrote")
    digest = hashlib.sha256()
    pictures: dict[str, dict[int, bytes]] = defaultdict(dict)
    for row in read_table(candidates, CANDIDATES):
        label = f"{candidates}: candidate {row['prompt_id']} sample {row['sample_index']}"
        data = _bytes_of(row["image"], label)
        digest.update(f"{row['prompt_id']}\0{row['sample_index']}\0".encode() + hashlib.sha256(data).digest())
        if row["sample_index"] in pictures[row["prompt_id"]]:
            raise UserError(f"{label}: is there twice; remove the repeated file or row")
        pictures[row["prompt_id"]][row["sample_index"]] = data
    masked, masks = _load_masked(prompts, set(pictures), digest)
    missing = [name for name in pictures if name not in masked]
    if missing:
        raise UserError(
            f"{prompts}: prompt {missing[0]} of {candidates} is not there; name the right prompts with --prompts"
        )
    for prompt_id, samples in pictures.items():
        for index, data in samples.items():
            label = f"{candidates}: candidate {prompt_id} sample {index}"
            samples[index] = _as_png(data, masks[prompt_id].shape, label)
    return AnnotationItems(masked=masked, masks=masks, candidates=dict(pictures), fingerprint=digest.hexdigest())


def _bytes_of(cell: ImageCell | None, label: str) -> bytes:
    if not cell or not cell["bytes"]:
        raise UserError(f"{label}: image holds no bytes; write the table again")
    return cell["bytes"]


def _as_png(data: bytes, shape: tuple[int, ...], label: str) -> bytes:
    """Returns a candidate as PNG without metadata, after checking its size."""
    image = decode_image(data, name=label)
    if (image.height, image.width) != shape:
        raise UserError(f"{label}: is {image.width}x{image.height}, its prompt {shape[1]}x{shape[0]}; make them anew")
    return encode_png(image)


def _load_masked(
    prompts: Path, wanted: set[str], digest: "hashlib._Hash"
) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    masked, masks = {}, {}
    for row in read_table(prompts, PROMPTS):
        prompt_id = row["prompt_id"]
        if prompt_id not in wanted:
            continue
        label = f"{prompts}: prompt {prompt_id}"
        image = decode_image(_bytes_of(row["image"], f"{label}: image"), name=f"{label}: image")
        mask = decode_mask(_bytes_of(row["mask"], f"{label}: mask"), size=image.size, name=f"{label}: mask")
        digest.update(f"{prompt_id}\0".encode() + hashlib.sha256(image.tobytes() + mask.tobytes()).digest())
        masks[prompt_id] = mask
        masked[prompt_id] = encode_png(_blank(image, mask))
    return masked, masks


def _blank(image: Image.Image, mask: np.ndarray) -> Image.Image:
    return tensor_to_image(blank_hole(image_to_tensor(image), mask_to_tensor(mask)))
