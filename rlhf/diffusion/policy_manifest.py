"""Policy folders: the manifest that marks a complete one, the policies of a run, and the model that a path names."""

import json
from pathlib import Path
from typing import TypedDict, get_type_hints

from rlhf.config.run_config import ModelConfig
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, check_schema, remove_folder

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class Manifest(TypedDict):
    """Record of a policy folder."""

    policy_version: int
    trainable: str
    """`lora` or `full`."""
    base_model: str
    checksum: str
    """Checksum of the trained tensors."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a policy folder whose weights are complete."""
    atomic_write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **manifest})


def read_manifest(folder: Path) -> Manifest:
    """Reads a policy folder's manifest; raises UserError if there is none, since the folder is then incomplete."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: no readable {MANIFEST}, so not a complete policy folder ({error})") from error
    record = manifest if isinstance(manifest, dict) else {}
    check_schema(record.get("schema_version"), SCHEMA_VERSION, folder / MANIFEST)
    wrong = [key for key, kind in get_type_hints(Manifest).items() if type(record.get(key)) is not kind]
    if wrong:
        raise UserError(f"{folder / MANIFEST}: lacks a valid {', '.join(wrong)}; write the policy again")
    return manifest


def list_policies(run: Path) -> list[Path]:
    """The complete policy folders of a run, oldest first; raises UserError if there is none."""
    folders = sorted(f for f in run.glob("policy-*") if (f / MANIFEST).is_file())
    if not folders:
        raise UserError(f"{run}: no complete policy-* folder there; run `rlhf align` first")
    return folders


def drop_policies(run: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` policies of a run, each with its manifest first; None keeps all."""
    for folder in list_policies(run)[:-keep] if keep else ():
        (folder / MANIFEST).unlink()
        remove_folder(folder)


def locate_policy(config: ModelConfig, model: Path | None) -> tuple[ModelConfig, Path | None]:
    """The model that a folder names: a run's last policy, a policy, or a whole pipeline."""
    if model is None:
        return config, None
    if (model / "model_index.json").is_file() or model.is_file():  # A single file is refused with its class.
        return config.model_copy(update={"path": str(model)}), None
    folder = model
    if not (model / MANIFEST).is_file():
        folder = list_policies(model / "align" if (model / "align").is_dir() else model)[-1]
    return config.model_copy(update={"path": read_manifest(folder)["base_model"]}), folder
