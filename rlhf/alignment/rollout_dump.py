"""Rollouts on disk: the batches of every update, to look at, or to train on again without samplers.

config.yaml                           configuration of the run
update-000001/batch-00000.safetensors one micro-batch: trajectories, advantages, trust weights, scores
update-000001/update.json             written last: metrics, weights, and the checksum of every batch
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from rlhf.config.config_files import dump_config, load_config
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.trajectories import NoisedSamples, Recording, Trajectories
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores
from rlhf.storage.atomic_files import atomic_write, atomic_write_json, atomic_write_text

RESTS_ON = ("seed", "model", "rewards", "align")
"""Sections of the configuration that an update depends on."""
TENSORS = {
    kind: tuple(field.name for field in fields(kind) if field.name not in ("step_indices", "text"))
    for kind in (Trajectories, NoisedSamples)
}


@dataclass(frozen=True, kw_only=True)
class DumpedBatch:
    """A micro-batch of whole groups."""

    prompt_ids: tuple[str, ...]
    trajectories: Recording
    images: torch.Tensor
    """uint8 [B, 3, H, W]."""
    advantages: torch.Tensor
    """float32 [B]."""
    trust_weights: torch.Tensor
    """float32 [B], divided by the mean over the whole update."""
    scores: dict[str, Scores]
    """Scores by reward."""


class RolloutDump:
    """A folder of dumped updates, numbered from 0 in code and from 1 on disk, as in `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, config: RunConfig, *, resume: bool) -> None:
        """Make the folder the dump of a run; raises UserError if it holds another one, or one that is not resumed."""
        if next(self._folder.glob("update-*/update.json"), None) is not None:
            if not resume:
                raise UserError(f"{self._folder}: holds rollouts already; add --resume, or choose another folder")
            self.check(config)
        atomic_write_text(self._folder / "config.yaml", dump_config(config))

    def check(self, config: RunConfig) -> None:
        """Raises UserError if the folder is the dump of another configuration, or of none."""
        path = self._folder / "config.yaml"
        if not path.is_file():
            raise UserError(f"{path}: not there, so not a folder of dumped rollouts; write one with --dump-rollouts")
        theirs = load_config(path)
        other = [name for name in RESTS_ON if getattr(theirs, name) != getattr(config, name)]
        if other:
            raise UserError(f"{path}: these rollouts are of another `{'`, `'.join(other)}`; use the same configuration")

    def check_whole(self, config: RunConfig) -> None:
        """Like `check`; also raises UserError with the file name if one of the configuration's updates is missing."""
        self.check(config)
        for update in range(config.align.updates):
            for entry in self._about(update)["batches"]:
                path = self._record(update).with_name(entry["file"])
                if not path.is_file():
                    raise UserError(f"{path}: missing; dump the rollouts again")

    def has(self, update: int) -> bool:
        """Whether a whole update is there."""
        return self._record(update).is_file()

    def write(self, update: int, batches: Iterable[DumpedBatch], about: dict[str, Any]) -> None:
        """Write an update, whole or not at all, with facts `about` it; one batch is in memory at a time."""
        self._record(update).unlink(missing_ok=True)
        entries = []
        for number, batch in enumerate(batches):
            name, data = f"batch-{number:05d}.safetensors", save(_tensors(batch))
            atomic_write(self._record(update).with_name(name), partial(Path.write_bytes, data=data))
            entry: dict[str, Any] = {
                "file": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "prompt_ids": list(batch.prompt_ids),
            }
            if isinstance(batch.trajectories, Trajectories):
                entry["step_indices"] = list(batch.trajectories.step_indices)
            entries.append(entry)
        atomic_write_json(self._record(update), about | {"batches": entries})

    def read(self, update: int) -> tuple[list[DumpedBatch], dict[str, Any]]:
        """An update and the facts about it; raises UserError with the name of a missing or damaged file."""
        about, folder = self._about(update), self._record(update).parent
        about["metrics"] = {name: math.nan if v is None else v for name, v in about["metrics"].items()}
        return [_read_batch(folder / entry["file"], entry) for entry in about.pop("batches")], about

    def _about(self, update: int) -> dict[str, Any]:
        path = self._record(update)
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: no whole update is there ({error}); dump the rollouts again") from error

    def _record(self, update: int) -> Path:
        return self._folder / f"update-{update + 1:06d}" / "update.json"


TEXT = "text/"
"""Before the names of a text's tensors."""


def _recording_of(tensors: dict[str, torch.Tensor], entry: dict[str, Any]) -> Recording:
    kind = Trajectories if "step_indices" in entry else NoisedSamples
    columns: dict[str, Any] = {name: tensors[name] for name in TENSORS[kind] if name in tensors}
    if kind is Trajectories:
        columns["step_indices"] = tuple(entry["step_indices"])
    if "text/embedding" in tensors:
        found = {name.removeprefix(TEXT): tensor for name, tensor in tensors.items() if name.startswith(TEXT)}
        columns["text"] = TextEmbedding.from_tensors(found)
    return kind(**columns)


def _tensors(batch: DumpedBatch) -> dict[str, torch.Tensor]:
    recorded = {name: getattr(batch.trajectories, name) for name in TENSORS[type(batch.trajectories)]}
    tensors = {name: tensor for name, tensor in recorded.items() if tensor is not None}
    tensors |= {"images": batch.images, "advantages": batch.advantages, "trust_weights": batch.trust_weights}
    if (text := batch.trajectories.text) is not None:
        tensors |= {TEXT + name: part for name, part in text.tensors().items()}
    for reward, scores in batch.scores.items():
        columns = {field.name: getattr(scores, field.name) for field in fields(Scores)}
        tensors |= {f"scores/{reward}/{name}": column for name, column in columns.items() if column is not None}
    # Clones, since safetensors refuses tensors that share memory, and slices of one update's advantages do.
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _read_batch(path: Path, entry: dict[str, Any]) -> DumpedBatch:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror or error}); dump the rollouts again") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise UserError(f"{path}: damaged, since its checksum is not that in update.json; dump the rollouts again")
    tensors = load(data)
    scores: dict[str, dict[str, torch.Tensor]] = {}
    for name in tensors:
        if name.startswith("scores/"):
            reward, _, column = name.removeprefix("scores/").rpartition("/")
            scores.setdefault(reward, {})[column] = tensors[name]
    return DumpedBatch(
        prompt_ids=tuple(entry["prompt_ids"]),
        trajectories=_recording_of(tensors, entry),
        images=tensors["images"],
        advantages=tensors["advantages"],
        trust_weights=tensors["trust_weights"],
        scores={reward: Scores(**columns) for reward, columns in scores.items()},
    )
