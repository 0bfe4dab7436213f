"""Opens rewards from the entries of the configuration's `rewards:`."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch

from rlhf.config.reward_entry import KINDS, RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.scores import Reward
from rlhf.storage.url_path import as_path

ALONE = (RewardEntry(kind="model"),)
"""Entries of a configuration without any: the reward folder alone."""


def build_rewards(
    entries: Sequence[RewardEntry], folder: Path | None, device: torch.device, *, trust: str = "proper"
) -> dict[str, Reward]:
    """Opens the rewards, by label; without entries the reward folder alone.

    `folder` is the reward folder that --reward names, `trust` the kind of trust weight that reward folders give.

    Raises UserError if something is missing or of another architecture.
    """
    return {entry.label: build_reward(entry, folder, device, trust=trust) for entry in entries or ALONE}


def build_reward(entry: RewardEntry, folder: Path | None, device: torch.device, *, trust: str = "proper") -> Reward:
    """Opens one reward with its weights; heavy imports happen only for the kinds that need them."""
    if entry.kind == "model":
        place = folder if entry.path is None else as_path(entry.path)
        if place is None:
            raise UserError(f"reward {entry.label}: no reward folder is named; add --reward, or `path` to the entry")
        return load_reward(place, trust=trust)
    return import_module(KINDS[entry.kind].module).open_entry(entry, device)


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
    places = {"path": "." if entry.kind == "function" and entry.path is None else entry.path}
    if "tower" in KINDS[entry.kind].reads:
        places["tower"] = entry.tower
    return {key: Path(place) for key, place in places.items() if place and Path(place).exists()}
