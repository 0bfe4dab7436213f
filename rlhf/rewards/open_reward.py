"""Opens rewards: a reward folder, the entries of a configuration's `rewards:`, or what --reward names."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from rlhf.config.align_config import Trust
from rlhf.config.config_files import load_config
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.reward_kinds import KINDS
from rlhf.errors import UserError
from rlhf.rewards.combination import SCALES, Combination, Scale, load_scales
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.opening import Opening
from rlhf.rewards.scores import Reward
from rlhf.storage.checksum import file_checksum, folder_checksum
from rlhf.storage.url_path import local_copy


def open_reward(place: Path, device: torch.device, captions: Mapping[str, str] | None = None) -> Reward:
    """Opens a reward folder, or the weighted sum of the `rewards:` of a run folder or a YAML file.

    A sum is scaled as alignment scaled it, by `reward_scales.json` beside the configuration; without that file every
    entry must set its `std`. Entries of kind `model` without `path` take the reward folder `reward` beside it.

    Raises UserError if a reward does not load, a scale is unknown, or a reward reads captions and one of `captions`
    (by prompt id) is empty.
    """
    if _is_reward_folder(place):
        return load_reward(place, device)
    found = _read_configuration(place)
    check_captions(found.entries, captions or {})
    weights = {entry.label: entry.weight for entry in found.entries}
    rewards = build_rewards(found.entries, found.folder, device)
    return Combination(rewards=rewards, weights=weights, scales=found.scales)


def reads_captions(place: Path) -> bool:
    """Returns whether the reward at `place` compares every image with its caption."""
    return not _is_reward_folder(place) and any(e.reads_captions for e in _read_configuration(place).entries)


def checksum_reward(place: Path) -> str:
    """Returns the SHA-256 of a reward folder, or of a configuration's rewards with their scales and local files."""
    if _is_reward_folder(place):
        return _checksum_path(place)
    found = _read_configuration(place)
    places = [path for entry in found.entries for path in local_places(entry).values()]
    record = {
        "rewards": [entry.model_dump(mode="json") for entry in found.entries],
        "scales": {name: asdict(scale) for name, scale in found.scales.items()},
        "files": [_checksum_path(path) for path in (*places, *([found.folder] if found.folder else ()))],
    }
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _checksum_path(path: Path) -> str:
    with local_copy(path) as local:
        return folder_checksum(local) if local.is_dir() else file_checksum(local)


def _is_reward_folder(place: Path) -> bool:
    return (place / "reward.json").is_file()


@dataclass(frozen=True, kw_only=True)
class _ConfiguredRewards:
    """Rewards of a configuration, and what lies beside it."""

    entries: Sequence[RewardEntry]
    folder: Path | None
    """Reward folder `reward` beside the configuration."""
    scales: Mapping[str, Scale]
    """Scales by the entries' labels."""


def _read_configuration(place: Path) -> _ConfiguredRewards:
    file = place if place.is_file() else place / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{place}: no reward.json, so not a complete reward folder, and no configuration; name a folder of "
            "`rlhf reward`, a run folder, or a YAML file with `rewards:`"
        )
    entries, folder = load_config(file).rewards, file.parent / "reward"
    own = folder if _is_reward_folder(folder) else None
    if entries:
        return _ConfiguredRewards(entries=entries, folder=own, scales=_read_scales(file, entries))
    if own is None:
        raise UserError(
            f"{place}: no reward.json, so not a complete reward folder, and no `rewards:` in {file.name}; name the "
            "folder that `rlhf reward` wrote"
        )
    return _ConfiguredRewards(entries=FOLDER_ALONE, folder=own, scales={entry.label: Scale() for entry in FOLDER_ALONE})


def _read_scales(file: Path, entries: Sequence[RewardEntry]) -> dict[str, Scale]:
    scales = load_scales(file.parent) if (file.parent / SCALES).is_file() else {}
    for entry in (entry for entry in entries if entry.label not in scales):
        if entry.std is None:
            raise UserError(
                f"{file}: the scale of reward {entry.label} is unknown (no {SCALES} that holds it); name the run "
                f"folder that `rlhf align` wrote, or set `std` of {entry.label}"
            )
        scales[entry.label] = Scale(mean=entry.mean or 0.0, std=entry.std)
    return scales


FOLDER_ALONE = (RewardEntry(kind="model"),)
"""Entries of a configuration without any: the reward folder alone."""


def build_rewards(
    entries: Sequence[RewardEntry], folder: Path | None, device: torch.device, *, trust: Trust = "auto"
) -> dict[str, Reward]:
    """Opens the rewards, by label; without entries the reward folder alone.

    `folder` is the reward folder that --reward names, `trust` the kind of trust weight that reward folders give.

    Raises UserError if something is missing or of another architecture.
    """
    return {entry.label: build_reward(entry, folder, device, trust=trust) for entry in entries or FOLDER_ALONE}


def build_reward(entry: RewardEntry, folder: Path | None, device: torch.device, *, trust: Trust = "auto") -> Reward:
    """Opens one reward with its weights; heavy imports happen only for the kinds that need them."""
    opening = Opening(device=device, folder=folder, trust=trust)
    return import_module(KINDS[entry.kind].module).open_entry(entry, opening)


def check_captions(entries: Iterable[RewardEntry], captions: Mapping[str, str]) -> None:
    """Raises UserError naming a prompt without a caption if a reward reads captions; `captions` are by prompt id."""
    readers = [entry for entry in entries if entry.reads_captions]
    for prompt_id, caption in captions.items() if readers else ():
        if not caption.strip():
            raise UserError(
                f"reward {readers[0].label}: compares images with texts, but prompt {prompt_id} has no caption; "
                f"write captions into the prompts, or set a fixed `text` for {readers[0].label}"
            )


def with_absolute_paths(entries: Iterable[RewardEntry]) -> tuple[RewardEntry, ...]:
    """Returns the entries with existing files and folders as absolute paths, for processes that start elsewhere."""
    return tuple(_with_absolute_paths(entry) for entry in entries)


def _with_absolute_paths(entry: RewardEntry) -> RewardEntry:
    return entry.model_copy(update={key: str(place.resolve()) for key, place in local_places(entry).items()})


def local_places(entry: RewardEntry) -> dict[str, Path]:
    """Returns the files and folders of this machine that an entry names, by key; names on the hub are none."""
    places = {key: getattr(entry, key) or default for key, default in KINDS[entry.kind].paths.items()}
    return {key: Path(place) for key, place in places.items() if place and Path(place).exists()}
