"""Output of a fixed backbone for pictures by key and augmentation, kept on disk by the pictures' content."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf.data.augmentation import PLAIN, Augmentation
from rlhf.data.candidate_table import Key
from rlhf.data.pictures import Pictures
from rlhf.data.ranks import ALONE, Ranks
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.checksum import checksum
from rlhf.storage.url_path import local_copy


class Descriptions:
    """Rows [D] by augmentation and key: those of this rank's pictures, in the order of `keys`."""

    variants: Sequence[Augmentation] = ()
    """Augmentations that a training draws from."""

    def __init__(
        self, keys: Mapping[Augmentation, Sequence[Key]], rows: Mapping[Augmentation, torch.Tensor], ranks: Ranks
    ) -> None:
        self._places = {change: {key: place for place, key in enumerate(own)} for change, own in keys.items()}
        self._rows, self._ranks = rows, ranks

    def of(self, keys: Sequence[Key], changes: Sequence[Augmentation] | None = None) -> torch.Tensor:
        """Returns the rows [N, D] of `keys`, each under its augmentation; every rank calls it with the same keys.

        By default the pictures are as they are.
        """
        own = self._ranks.own(keys)
        of_change: dict[Augmentation, list[int]] = {}
        for number, place in enumerate(own):
            of_change.setdefault(PLAIN if changes is None else changes[place], []).append(number)
        rows = next(iter(self._rows.values())).new_empty(len(own), next(iter(self._rows.values())).shape[1])
        for change, numbers in of_change.items():
            places = self._places[change]
            rows[numbers] = self._rows[change][[places[keys[own[number]]] for number in numbers]]
        return self._ranks.join(keys, rows)


PICTURES_PER_FILE = 1024


class PictureBackbone(Protocol):
    """A module that describes images [B, 3, H, W] in [-1, 1] with masks [B, 1, H, W]: [B, output_dim]."""

    output_dim: int
    code_version: tuple[int, ...]
    """Numbers of the code that the output is made by; one is raised when the code gives other numbers."""

    def __call__(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Describes a batch."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yields the weights."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns weights and buffers by name."""


def run_backbone(backbone: PictureBackbone, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the backbone's output [N, output_dim] on the CPU; pictures go to the device of its weights."""
    weight = next(iter(backbone.parameters()), None)
    device = torch.device("cpu") if weight is None else weight.device
    return backbone(images.to(device), masks.to(device)).cpu()


class DescriptionCache:
    """Files in a folder with what a backbone said of pictures, found again by the pictures' content."""

    def __init__(self, folder: Path, backbone: PictureBackbone) -> None:
        """Opens the folder for a backbone; other weights and other versions of the backbone's code have other files."""
        identity = f"{type(backbone).__name__} {backbone.code_version} {checksum(backbone.state_dict())}"
        self._folder, self._name = folder, hashlib.sha256(identity.encode()).hexdigest()[:16]

    def read(self, change: Augmentation, digests: Sequence[bytes], rows: torch.Tensor) -> set[int]:
        """Fills `rows` [N, D] of pictures with these `digests` from the files; returns the places that it filled."""
        wanted: dict[bytes, list[int]] = {}
        for place, digest in enumerate(digests):
            wanted.setdefault(digest, []).append(place)
        filled: set[int] = set()
        for path in sorted(self._folder.glob(f"{self._name}-{change.label}-*.safetensors")):
            try:
                with local_copy(path) as local:
                    record = load_file(local)
                known = [bytes(digest) for digest in record["digests"].numpy()]
                found = [(place, number) for number, digest in enumerate(known) for place in wanted.get(digest, ())]
                rows[[place for place, _ in found]] = record["rows"][[number for _, number in found]]
            except (OSError, ValueError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
                raise UserError(f"{path}: damaged ({error}); remove it; its pictures are described again") from error
            filled |= {place for place, _ in found}
        return filled

    def write(self, change: Augmentation, digests: Sequence[bytes], rows: torch.Tensor) -> None:
        """Stores the rows [N, D] of pictures in one file."""
        content = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
        keys = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, 32)
        record = {"digests": keys, "rows": rows.contiguous()}
        path = self._folder / f"{self._name}-{change.label}-{content}.safetensors"
        atomic_write(path, lambda temporary: save_file(record, temporary))


def describe(
    backbone: PictureBackbone,
    pictures: Pictures,
    wanted: Mapping[Augmentation, Sequence[Key]],
    *,
    ranks: Ranks = ALONE,
    cache: DescriptionCache | None = None,
) -> Descriptions:
    """Describes pictures under augmentations, each once; the rank's own ones alone. What the cache holds is read."""
    own = {change: [key for key in dict.fromkeys(keys) if ranks.owns(key)] for change, keys in wanted.items()}
    rows = {change: torch.empty(len(keys), backbone.output_dim) for change, keys in own.items()}
    missing = {change: {key: place for place, key in enumerate(keys)} for change, keys in own.items()}
    digests: dict[Key, bytes] = {}
    if cache is not None:
        digests = pictures.digests({key for keys in own.values() for key in keys})
        for change, keys in own.items():
            filled = cache.read(change, [digests[key] for key in keys], rows[change])
            missing[change] = {key: place for key, place in missing[change].items() if place not in filled}
    left = pictures.in_order({key for keys in missing.values() for key in keys})
    with ranks.agreed(), progress_bar(stage="pictures", total=len(left)) as bar:
        for start in range(0, len(left), PICTURES_PER_FILE):
            part = left[start : start + PICTURES_PER_FILE]
            for batch, images, masks in pictures.stream(part):
                _describe_batch(backbone, batch, images, masks, missing, rows)
                bar.update(len(batch))
            for change, places in missing.items():
                new = [key for key in part if key in places]
                if cache is not None and new:
                    cache.write(change, [digests[key] for key in new], rows[change][[places[key] for key in new]])
    return Descriptions(own, rows, ranks)


def _describe_batch(
    backbone: PictureBackbone,
    keys: Sequence[Key],
    images: torch.Tensor,
    masks: torch.Tensor,
    missing: Mapping[Augmentation, Mapping[Key, int]],
    rows: Mapping[Augmentation, torch.Tensor],
) -> None:
    for change, places in missing.items():
        inside = [number for number, key in enumerate(keys) if key in places]
        if inside:
            with torch.no_grad():
                found = run_backbone(backbone, *change.apply(images[inside], masks[inside]))
            rows[change][[places[keys[number]] for number in inside]] = found
