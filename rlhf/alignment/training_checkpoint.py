"""A training checkpoint: what a rank keeps in it, and its files, which are recorded with checksums and run no code.

DeepSpeed writes weights and optimizer, and `RankState` beside them. Its files are pickles, which it loads with
`weights_only=False`. Each rank records its files beside them.
"""

from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf.alignment.run_folder import LEARNER_FOLDER
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, check_schema, read_json
from rlhf.storage.checksum import file_checksum
from rlhf.storage.tensor_files import read_tensors

SCHEMA_VERSION = 1
"""Version of what each rank records, and of `RankState`: raise it when that changes."""
TAG = "learner"
"""Name of DeepSpeed's folder in a checkpoint."""
RAYS_LIST = "checkpoint_manager_snapshot.json"
"""File in which Ray Train lists a run's checkpoints."""
REMEDY = "restore it, or start another run, with --policy from the last policy of this one"


class RankState(TypedDict):
    """What a rank keeps beside the weights and the optimizer that DeepSpeed writes."""

    update: int
    """Number of updates that were made."""
    averaged: dict[str, torch.Tensor]
    """EMA of the trained tensors; empty without one."""
    old: dict[str, torch.Tensor] | None
    """nft's old policy; None for other algorithms."""


class CheckpointRecord(BaseModel):
    """What one rank wrote into a checkpoint."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    ranks: int = Field(ge=1)
    """Number of ranks that wrote the checkpoint."""
    files: dict[str, str]
    """SHA-256 of each of the rank's tensor files, by its path in the checkpoint."""


def record_files(folder: Path, rank: int, ranks: int) -> None:
    """Writes the record of a rank, whose files alone are in `folder`."""
    files = {name: file_checksum(folder / name) for name in _tensor_files(folder)}
    atomic_write_json(_record_path(folder, rank), CheckpointRecord(ranks=ranks, files=files).model_dump())


def saved_ranks(folder: Path) -> int:
    """Returns the number of ranks that wrote a checkpoint. Raises UserError if its record is missing or damaged."""
    return _read_record(_record_path(folder, 0)).ranks


def read_split_states(folder: Path) -> list[RankState]:
    """Returns what each rank saved in a checkpoint of ZeRO stage 3, rank by rank; the files have been checked."""
    files = (f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(saved_ranks(folder)))
    found = [read_tensors(folder / TAG / file, REMEDY, plain_types()) for file in files]
    return cast(list[RankState], found)


def check_list(run: Path) -> None:
    """Raises UserError if the list in a run's `learner` folder is damaged, or a checkpoint that it names is missing."""
    path = run / LEARNER_FOLDER / RAYS_LIST
    if not path.is_file():  # The run ended before its first checkpoint.
        return
    try:
        names = [result["checkpoint_dir_name"] for result in read_json(path, REMEDY)["checkpoint_results"]]
        missing = [name for name in names if not (path.parent / name).exists()]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); {REMEDY}") from error
    if missing:
        raise UserError(f"{path.parent / missing[0]}: is missing, but {path} names it; {REMEDY}")


def check_files(folder: Path) -> None:
    """Raises UserError, naming the file, unless a checkpoint has the files that were recorded, with tensors alone."""
    recorded: dict[str, str] = {}
    for rank in range(saved_ranks(folder)):
        recorded |= _read_record(_record_path(folder, rank)).files
    for name in sorted(recorded.keys() ^ set(_tensor_files(folder))):
        raise UserError(f"{folder / name}: {'is missing' if name in recorded else 'is in no record'}; {REMEDY}")
    for name, expected in recorded.items():
        if file_checksum(folder / name) != expected:
            raise UserError(f"{folder / name}: was changed after it was written (checksum); {REMEDY}")
        read_tensors(folder / name, REMEDY, plain_types())


def plain_types() -> list[Any]:
    """Returns the types besides tensors in ZeRO's files: the scale of the loss, the stage, places of fragments."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _tensor_files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.pt"))]


def _record_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def _read_record(path: Path) -> CheckpointRecord:
    try:
        record = CheckpointRecord.model_validate(read_json(path, REMEDY))
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({error.errors()[0]['msg']}); {REMEDY}") from error
    check_schema(record.schema_version, SCHEMA_VERSION, path)
    return record
