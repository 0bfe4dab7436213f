"""Describes pictures by a backbone, batch by batch; what a fixed one says of a picture is kept on disk."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf import __version__
from rlhf.data.augmentation import Augmentation
from rlhf.data.candidate_table import Key
from rlhf.data.descriptions import ALONE, Descriptions, Ranks
from rlhf.data.pictures import Pictures
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.rewards.learned.feature_network import Backbone, run_backbone
from rlhf.storage.atomic_files import atomic_write
from rlhf.storage.checksum import checksum
from rlhf.storage.url_path import local_copy

PICTURES_PER_FILE = 1024


class DescriptionCache:
    """Files in a folder with what a backbone said of pictures, found again by the pictures' content."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        """Opens the folder for a backbone; other weights and other versions of this program have other files."""
        identity = f"{__version__} {type(backbone).__name__} {checksum(backbone.state_dict())}"
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
    backbone: Backbone,
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
    with progress_bar(stage="pictures", total=len(left)) as bar:
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
    backbone: Backbone,
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


GiveBack = Callable[[torch.Tensor | None], None]
"""Takes the gradient [N, D] of described images to the backbone's weights."""


def describe_to_train(
    backbone: Backbone, pictures: Pictures, keys: Sequence[Key], change: Augmentation, ranks: Ranks
) -> tuple[torch.Tensor, GiveBack]:
    """Returns a trained backbone's output [N, D] for images of all ranks, and how its gradient reaches the weights.

    Each rank describes its own images. The loss compares all of them (batch norm, pairs, covariances), so every rank
    computes it on all rows, and the weights' gradients, one part from each rank, are added: the sum is that of one
    worker. Images that do not fit into one batch are described again for the gradient, so that memory holds one batch
    of activations (gradient caching, arXiv:2101.06983).
    """
    own = [keys[place] for place in ranks.own(keys)]
    batches = [change.apply(*pictures.show(batch)) for batch in pictures.batches(own)]
    with torch.set_grad_enabled(len(batches) == 1):
        outputs = [run_backbone(backbone, *batch) for batch in batches]
    found = torch.cat(outputs) if outputs else torch.zeros(0, backbone.output_dim)
    joined = ranks.join(keys, found.detach()).requires_grad_()

    def give_back(gradient: torch.Tensor | None) -> None:
        assert gradient is not None, "the loss depends on all images"
        parts = gradient[ranks.own(keys)].split([len(output) for output in outputs])
        for output, batch, part in zip(outputs, batches, parts, strict=True):
            (output if output.requires_grad else run_backbone(backbone, *batch)).backward(part)
        add_gradients(backbone, ranks)

    return joined, give_back


def add_gradients(backbone: Backbone, ranks: Ranks) -> None:
    """Adds the gradients of the backbone's trained weights over all ranks."""
    if ranks.count == 1:
        return
    weights = [p for p in backbone.parameters() if p.requires_grad]
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    total = ranks.add(torch.cat([gradient.flatten().cpu() for gradient in own]))
    for weight, part in zip(weights, total.split([p.numel() for p in weights]), strict=True):
        weight.grad = part.view_as(weight).to(weight.device)


def is_fixed(backbone: Backbone) -> bool:
    """Returns whether no weight of the backbone is trained."""
    return not any(p.requires_grad for p in backbone.parameters())
