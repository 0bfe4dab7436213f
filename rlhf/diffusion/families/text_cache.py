"""Embeddings of texts on disk, by encoder and content: whoever reads them needs no text encoder."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
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
CHECKSUM = "sha256"


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
        encoder = checksum_of(repr(sorted(facts.items())))[:16]
        if not (folder / encoder / ENCODER).is_file():
            atomic_write_json(folder / encoder / ENCODER, {"model": model} | facts)
        return cls(folder=folder, encoder=encoder, model=model)

    def read(self, text: str) -> TextEmbedding:
        """The embedding of a text, on the CPU. Raises UserError if it is missing or damaged, with the remedy."""
        path = self._file(text)
        try:
            tensors = load(path.read_bytes())
            stated = bytes(tensors.pop(CHECKSUM).tolist()).hex()
            if checksum(tensors) != stated:
                raise ValueError("its checksum differs")
            return TextEmbedding(pooled=tensors.pop("pooled", None), **tensors)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: no embedding of {text[:60]!r} by the text encoder of {self.model}{self.describe_others()}; "
                "check that all nodes see this folder, and start the command again, which computes what is missing"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove it, and start the command again, which computes it anew"
            ) from error

    def write(self, text: str, embedding: TextEmbedding) -> None:
        """Stores the embedding of a text, in place of a previous one."""
        parts = {field.name: getattr(embedding, field.name) for field in fields(TextEmbedding)}
        tensors = {name: part.cpu().contiguous() for name, part in parts.items() if part is not None}
        tensors[CHECKSUM] = torch.tensor(list(bytes.fromhex(checksum(tensors))), dtype=torch.uint8)
        atomic_write(self._file(text), lambda temporary: save_file(tensors, temporary))

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those of `texts` that have no embedding yet, each once."""
        there = {path.name for path in (self.folder / self.encoder).glob("*.safetensors")}
        return [text for text in dict.fromkeys(texts) if self._file(text).name not in there]

    def describe_others(self) -> str:
        """A clause on the encoders of other models whose embeddings lie in the folder, for messages; or nothing."""
        found = [path for path in sorted(self.folder.glob(f"*/{ENCODER}")) if path.parent.name != self.encoder]
        names = [f"{read_json(path, 'remove its folder')['model']} ({path.parent.name})" for path in found]
        return f", only by that of {', '.join(names)}, which is another" if names else ""

    def _file(self, text: str) -> Path:
        return self.folder / self.encoder / f"{checksum_of(text)}.safetensors"


def checksum_of(text: str) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
