"""Embeddings of texts on disk, by encoder and content: whoever reads them needs no text encoder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from rlhf.diffusion.families.family import TextEmbedding
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write, atomic_write_json, read_json
from rlhf.storage.checksum import checksum

ENCODER = "encoder.json"
CHECKSUM, SUFFIX = "sha256", ".safetensors"


@dataclass(frozen=True, kw_only=True)
class TextCache:
    """The embeddings that one text encoder made, a file for each text.

    Files are whole or not there, so any number of processes may read and write at once.
    """

    folder: Path
    """Local or at a URL; each encoder has a subfolder."""
    encoder: str
    """Digest of all that an embedding depends on beside the text; name of the subfolder."""
    model: str
    """The model that the encoder belongs to."""

    @classmethod
    def open(cls, folder: Path, model: str, facts: dict[str, Any]) -> "TextCache":
        """The part of a cache that belongs to an encoder of which these `facts` are true; they are written there."""
        encoder = key_of(repr(sorted(facts.items())))[:16]
        if not (folder / encoder / ENCODER).is_file():
            atomic_write_json(folder / encoder / ENCODER, {"model": model} | facts)
        return cls(folder=folder, encoder=encoder, model=model)

    def read(self, text: str, picture: torch.Tensor | None = None) -> TextEmbedding:
        """The embedding of a text, on the CPU; `picture` as in `ModelFamily.embed`.

        Raises UserError if it is missing or damaged, with the remedy.
        """
        path = self._file(key_of(text, picture))
        try:
            tensors = load(path.read_bytes())
            stated = bytes(tensors.pop(CHECKSUM).tolist()).hex()
            if checksum(tensors) != stated:
                raise ValueError("its checksum differs")
            return TextEmbedding.from_tensors(tensors)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: no embedding of {text[:60]!r} by the text encoder of {self.model}{self.describe_others()}; "
                "check that all nodes see this folder, and start the command again, which computes what is missing"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove it, and start the command again, which computes it anew"
            ) from error

    def write(self, key: str, embedding: TextEmbedding) -> None:
        """Stores the embedding of a text by its `key_of`, in place of a previous one."""
        tensors = {name: part.cpu().contiguous() for name, part in embedding.tensors().items()}
        tensors[CHECKSUM] = torch.tensor(list(bytes.fromhex(checksum(tensors))), dtype=torch.uint8)
        atomic_write(self._file(key), lambda temporary: save_file(tensors, temporary))

    def keys(self) -> set[str]:
        """Keys of all embeddings that are there."""
        return {path.name.removesuffix(SUFFIX) for path in (self.folder / self.encoder).glob(f"*{SUFFIX}")}

    def describe_others(self) -> str:
        """A clause on the encoders of other models whose embeddings lie in the folder, for messages; or nothing."""
        found = [path for path in sorted(self.folder.glob(f"*/{ENCODER}")) if path.parent.name != self.encoder]
        names = [f"{read_json(path, 'remove its folder')['model']} ({path.parent.name})" for path in found]
        return f", only by that of {', '.join(names)}, which is another" if names else ""

    def _file(self, key: str) -> Path:
        return self.folder / self.encoder / f"{key}{SUFFIX}"


def key_of(text: str, picture: torch.Tensor | None = None) -> str:
    """The SHA-256 of a text, and of a picture, uint8 [3, H, W], if it has one."""
    digest = hashlib.sha256(text.encode())
    if picture is not None:
        digest.update(f"\0{tuple(picture.shape)}".encode() + picture.contiguous().numpy().tobytes())
    return digest.hexdigest()
