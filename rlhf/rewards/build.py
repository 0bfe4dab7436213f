"""From the configuration's `rewards:` to rewards that score."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from rlhf.config.reward_entry import TEXT_KINDS, RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.scores import RewardSource
from rlhf.rewards.trained_model import TrainedModel
from rlhf.storage.url_path import as_path

CLIP = "openai/clip-vit-large-patch14"


def build_rewards(
    entries: Sequence[RewardEntry], folder: Path | None, device: torch.device, *, trust: str = "proper"
) -> dict[str, RewardSource]:
    """The rewards by name; without entries the reward folder alone.

    `folder` is what --reward names, `trust` the kind of weight that reward folders give.
    Raises UserError where something is missing or of another architecture.
    """
    entries = entries or (RewardEntry(kind="model"),)
    return {entry.label: build_reward(entry, folder, device, trust=trust) for entry in entries}


def build_reward(
    entry: RewardEntry, folder: Path | None, device: torch.device, *, trust: str = "proper"
) -> RewardSource:
    """One reward, its weights loaded; heavy imports only for the kinds that need them."""
    name, path, text = entry.label, entry.path, entry.text
    match entry.kind:
        case "model":
            return TrainedModel(model=load_reward(_reward_folder(entry, folder)), trust=trust)
        case "clip_score":
            from rlhf.rewards.clip_score import load_clip_score

            return load_clip_score(path or CLIP, name, device, scale=100.0, text=text)
        case "pick_score":
            from rlhf.rewards.pick_score import load_pick_score

            return load_pick_score(path, name, device, text)
        case "hpsv2":
            from rlhf.rewards.hpsv2 import load_hpsv2

            return load_hpsv2(path, name, device, text)
        case "image_reward":
            from rlhf.rewards.image_reward import load_image_reward

            return load_image_reward(path, name, device, text)
        case "aesthetic":
            from rlhf.rewards.aesthetic import load_aesthetic

            return load_aesthetic(path, entry.tower, name, device)
        case _:
            return _build_without_weights(entry)


def _build_without_weights(entry: RewardEntry) -> RewardSource:
    if entry.kind == "seam":
        from rlhf.rewards.seam import Seam

        return Seam()
    if entry.kind == "function":
        from rlhf.rewards.python_function import load_function

        assert entry.function is not None
        return load_function(entry.function, Path(entry.path or ".").resolve(), entry.label, entry.text)
    from rlhf.rewards.remote_server import RemoteServer

    assert entry.url is not None
    return RemoteServer(
        name=entry.label, url=entry.url, timeout_s=entry.timeout_s, retries=entry.retries, text=entry.text
    )


def _reward_folder(entry: RewardEntry, folder: Path | None) -> Path:
    if entry.path is not None:
        return as_path(entry.path)
    if folder is None:
        raise UserError(f"reward {entry.label}: no reward folder is named; add --reward, or `path` to the entry")
    return folder


def check_captions(entries: Iterable[RewardEntry], captions: Mapping[str, str]) -> None:
    """UserError that names the first prompt without a caption, where a reward reads it; captions by prompt id."""
    readers = [e for e in entries if e.kind in TEXT_KINDS and e.text is None]
    for prompt_id, caption in captions.items() if readers else ():
        if not caption.strip():
            raise UserError(
                f"reward {readers[0].label}: compares images with texts, but prompt {prompt_id} has no caption; "
                f"write captions into the prompts, or set a fixed `text` for {readers[0].label}"
            )


def with_absolute_paths(entries: Iterable[RewardEntry]) -> tuple[RewardEntry, ...]:
    """Folders that are there made absolute, for processes that start elsewhere; names on the hub stay."""
    return tuple(_with_absolute_path(entry) for entry in entries)


def _with_absolute_path(entry: RewardEntry) -> RewardEntry:
    places = {"path": "." if entry.kind == "function" and entry.path is None else entry.path}
    if entry.kind == "aesthetic":
        places["tower"] = entry.tower
    found = {key: str(Path(place).resolve()) for key, place in places.items() if place and Path(place).exists()}
    return entry.model_copy(update=found)
