"""Opens reward folders and checks that they are complete."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlhf.config.align_config import Trust
from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.learned.bound import RidgeHead
from rlhf.rewards.learned.feature_network import PREFPAINT_KIND, FeatureNetwork, build_backbone
from rlhf.rewards.learned.prefpaint_reward import PrefpaintReward, load_prefpaint_reward
from rlhf.rewards.learned.reward_model import SCHEMA_VERSION, Calibration, RewardModel
from rlhf.rewards.opening import Opening
from rlhf.storage.atomic_files import check_schema
from rlhf.storage.checksum import checksum
from rlhf.storage.url_path import as_path, local_copy

CPU = torch.device("cpu")


def load_reward(folder: Path, device: torch.device = CPU, *, trust: Trust = "auto") -> RewardModel | PrefpaintReward:
    """Opens a reward folder, whose network describes pictures on `device` and whose trust weights are of `align.trust`.

    Raises UserError if the folder is incomplete, of another architecture, holds other weights than were saved, or
    cannot give that kind of trust weight.
    """
    try:
        record = json.loads((folder / "reward.json").read_text())
        if record.get("kind") == PREFPAINT_KIND:
            return load_prefpaint_reward(folder, record, device, trust=trust)
        check_schema(record["schema_version"], SCHEMA_VERSION, folder / "reward.json")
        if record["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: schema {record['schema_version']}, but this version reads {SCHEMA_VERSION}; "
                "run `rlhf reward` again"
            )
        network = FeatureNetwork(build_backbone(record["backbone"]), record["feature_dim"])
        with local_copy(folder) as local:
            network.load_state_dict(load_file(local / "model.safetensors"))
            head = load_file(local / "head.safetensors")
        calibration = Calibration(**record["calibration"])
        check_shapes(head, record["feature_dim"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a complete reward folder ({error}); run `rlhf reward` again") from error
    ridge_head = RidgeHead(weight=head["weight"], cholesky=head["cholesky"], ridge=calibration.ridge)
    check_sound(folder, network, ridge_head)
    _check_trust(folder, calibration, trust)
    _check_checksums(folder, record, {"model.safetensors": network.state_dict(), "head.safetensors": head})
    return RewardModel(
        network=network.to(device).eval(),
        head=ridge_head,
        calibration=calibration,
        backbone=record["backbone"],
        feature_dim=record["feature_dim"],
        trust=trust,
    )


def _check_checksums(folder: Path, record: dict[str, Any], states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for file, state in states.items():
        if record.get("checksums", {}).get(file, found := checksum(state)) != found:
            raise UserError(f"{folder / file}: not the weights of its reward.json (checksum); run `rlhf reward` again")


def _check_trust(folder: Path, calibration: Calibration, trust: Trust) -> None:
    if trust == "release" and calibration.median_released_norm is None:
        raise UserError(
            f"{folder}: align.trust is `release`, but this older folder lacks the norm's median; run `rlhf reward` "
            "again, or set align.trust to `proper`"
        )


def open_entry(entry: RewardEntry, opening: Opening) -> RewardModel | PrefpaintReward:
    """Opens the reward folder at the entry's `path`, or the one that --reward names.

    Raises UserError if neither is named, or as `load_reward` does.
    """
    place = opening.folder if entry.path is None else as_path(entry.path)
    if place is None:
        raise UserError(f"reward {entry.label}: no reward folder is named; add --reward, or `path` to the entry")
    return load_reward(place, opening.device, trust=opening.trust)


def check_shapes(head: dict[str, torch.Tensor], feature_dim: int) -> None:
    """Raises ValueError if the tensors of a ridge head do not fit `feature_dim` features and a constant."""
    size = feature_dim + 1
    for name, shape in (("weight", (size,)), ("cholesky", (size, size))):
        if head[name].shape != shape:
            raise ValueError(f"head.safetensors: {name} is {tuple(head[name].shape)}, not {shape}")


def check_sound(folder: Path, network: torch.nn.Module, head: RidgeHead) -> None:
    """Raises UserError if a loaded reward holds NaN or infinity, or a V that is not positive definite."""
    if not all(tensor.isfinite().all() for tensor in (*network.state_dict().values(), head.weight)):
        raise UserError(f"{folder}: holds values that are not finite; run `rlhf reward` again")
    # L L' is positive definite if L is finite and has no 0 on its diagonal, whatever the signs there.
    if not head.cholesky.isfinite().all() or not head.cholesky.diagonal().all():
        raise UserError(f"{folder}: V in head.safetensors is not positive definite; run `rlhf reward` again")
