"""The weights of a policy folder: written, checked, read to train on, merged, or loaded as an adapter.

A folder holds LoRA layers as diffusers loads them, or a whole network; its manifest comes last.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.part_weights import check_finite, load_part, show_names
from rlhf.diffusion.lora_layers import bind_layers
from rlhf.diffusion.policy_manifest import MANIFEST, Manifest, read_manifest, write_manifest
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.errors import UserError
from rlhf.storage.atomic_files import whole_folder
from rlhf.storage.checksum import checksum
from rlhf.storage.url_path import local_copy

LORA_FILE = "pytorch_lora_weights.safetensors"
"""File name of LoRA layers in diffusers."""
NETWORK_FILES = "*/*.safetensors"
"""Files of a whole network."""


def save_policy(
    family: ModelFamily, state: dict[str, torch.Tensor], folder: Path, *, version: int, trainable: str, base: str
) -> None:
    """Write trained tensors as a policy folder: LoRA layers as diffusers loads them, or a network."""
    with whole_folder(folder, MANIFEST) as local:
        if trainable == "lora":
            from peft import get_peft_model_state_dict

            layers = get_peft_model_state_dict(family.network, state_dict=state)
            family.pipeline.save_lora_weights(local, **{f"{family.network_name}_lora_layers": layers})
        else:
            network = type(family.network).from_config(family.network.config)
            # The network's constants, such as tables of positions, are no trained tensors, but diffusers saves them.
            held = family.network.state_dict()
            state = state | {name: held[name].cpu() for name in held.keys() - state.keys()}
            network.load_state_dict(state)
            network.save_pretrained(local / family.network_name)
        write_manifest(
            local,
            Manifest(policy_version=version, trainable=trainable, base_model=base, checksum=checksum(state)),
        )


def check_weights(folder: Path) -> None:
    """Whatever loads a policy folder calls this first.

    Raises UserError if the weights cannot be read, differ from the manifest's checksum, or are not finite.
    """
    manifest = read_manifest(folder)
    if manifest["trainable"] == "lora":
        pattern = LORA_FILE
        state = {_parameter_name(layer): tensor for layer, tensor in _read_lora(folder).items()}
    else:
        pattern = NETWORK_FILES
        state = _read_tensors(folder, pattern)
    if checksum(state) != manifest["checksum"]:
        raise UserError(
            f"{folder}: its weights are not those of its {MANIFEST} (checksum of {pattern}); write the policy again"
        )
    check_finite(state, f"{folder}: {pattern}")


def check_start(folder: Path, trainable: str, base: str | None = None) -> None:
    """Raises UserError if training cannot start from a policy folder: damaged, of another kind or base model."""
    check_weights(folder)
    manifest = read_manifest(folder)
    if manifest["trainable"] != trainable:
        raise UserError(f"{folder}: holds `{manifest['trainable']}` weights, but align.trainable is `{trainable}`")
    if base is not None and manifest["base_model"] != base:
        raise UserError(f"{folder}: is a policy of {manifest['base_model']}, but model.path is {base}")


def read_trainable_state(folder: Path, family: ModelFamily, trainable: str) -> dict[str, torch.Tensor]:
    """The tensors of a policy folder by the names of `trainable_state(family.network)`, to start training from.

    Raises UserError if the folder is incomplete, or its adapters are of another kind, rank or modules.
    """
    check_start(folder, trainable)
    own = trainable_state(family.network)
    if trainable == "full":
        found: dict[str, torch.Tensor] = dict(open_network(folder, family).named_parameters())
    else:
        found = {_parameter_name(layer): tensor for layer, tensor in _read_lora(folder).items()}
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(f"{folder}: its adapters are of another rank or on other modules than align.lora_* say")
    return {name: tensor.detach().to(own[name]) for name, tensor in found.items()}


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The settings of `align` that a policy folder was trained with: `trainable`, rank and targets of its adapters."""
    trainable = read_manifest(folder)["trainable"]
    if trainable == "full":
        return {"trainable": trainable}
    down = {name.removesuffix(".lora_A.weight"): t for name, t in _read_lora(folder).items() if ".lora_A." in name}
    return {"trainable": trainable, "lora_rank": len(next(iter(down.values()))), "lora_targets": tuple(sorted(down))}


def merge_weights(family: ModelFamily, folder: Path) -> int:
    """Merge a policy folder into the family's network, or put its network there; returns the policy version.

    Raises UserError if the folder is damaged, or a policy of another model.
    """
    manifest = read_manifest(folder)
    if manifest["trainable"] == "lora":
        load_adapter(family, folder, "merged")
        family.pipeline.fuse_lora()
        family.pipeline.unload_lora_weights()
    else:
        family.network = open_network(folder, family)
    return int(manifest["policy_version"])


def load_adapter(family: ModelFamily, folder: Path, name: str) -> None:
    """Add a policy folder's LoRA layers to the family's network as the adapter `name`, beside others.

    Raises UserError if the folder is damaged, or a policy of another model.
    """
    check_weights(folder)
    layers = {f"{family.network_name}.{layer}": tensor for layer, tensor in _read_lora(folder).items()}
    bind_layers(family, layers, name, f"{folder}: {LORA_FILE}")


def open_network(folder: Path, family: ModelFamily) -> torch.nn.Module:
    """The frozen network of a policy folder whose `trainable` is `full`, on the family's device.

    Raises UserError if the folder is damaged, or a policy of another model.
    """
    check_weights(folder)
    kind = type(family.network)
    with torch.device("meta"):
        ours = kind.from_config(family.network.config)
    with local_copy(folder) as local:
        network = load_part(kind, local / family.network_name, None)
    if odd := dict(_shapes(network)).items() ^ dict(_shapes(ours)).items():
        names = show_names({name for name, _ in odd})
        raise UserError(f"{folder}: does not fit this base model: {names}; name its own with model.path")
    network.to(family.device).to(memory_format=torch.channels_last)
    return network.requires_grad_(False).eval()


def _shapes(network: torch.nn.Module) -> Iterator[tuple[str, torch.Size]]:
    return ((name, tensor.shape) for name, tensor in network.named_parameters())


def _read_lora(folder: Path) -> dict[str, torch.Tensor]:
    """LoRA layers by name inside their network, as `mid_block.to_q.lora_A.weight`."""
    return {layer.partition(".")[2]: tensor for layer, tensor in _read_tensors(folder, LORA_FILE).items()}


def _read_tensors(folder: Path, pattern: str) -> dict[str, torch.Tensor]:
    try:
        with local_copy(folder) as local:
            tensors = {name: t for file in sorted(local.glob(pattern)) for name, t in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({pattern}: {error}); write the policy again") from error
    if not tensors:
        raise UserError(f"{folder}: its weights cannot be read (no {pattern}); write the policy again")
    return tensors


def _parameter_name(layer: str) -> str:
    """`mid.to_q.lora_A.weight`, a layer in a file, to the name that the network's own adapter has."""
    return f"{layer.removesuffix('.weight')}.default.weight"
