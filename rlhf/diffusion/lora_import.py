"""LoRA files of other tools as policy folders: Kohya's, PEFT's and diffusers'."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.part_weights import check_finite, show_names
from rlhf.diffusion.lora_layers import bind_layers
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_weights import save_policy
from rlhf.errors import UserError

PEFT_PREFIX = "base_model.model."
PEFT_CONFIG = "adapter_config.json"
PEFT_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora")


def import_lora(config: ModelConfig, file: Path, out: Path) -> int:
    """Write a LoRA file for the network of `config` as a policy folder of version 0; returns the number of layers.

    The scale of each layer (alpha / rank) is multiplied into its tensors. Raises UserError, with the names, if a tensor
    of the file would be left out: those of text encoders, of other modules, and of other methods than LoRA.
    """
    tensors = _read(file)
    policy = load_policy(config)
    family, network = policy.family, policy.family.network
    if all(name.startswith(PEFT_PREFIX) for name in tensors):
        layers = {f"{family.network_name}.{name.removeprefix(PEFT_PREFIX)}": t for name, t in tensors.items()}
        settings: dict[str, Any] = {"metadata": _peft_settings(file.parent / PEFT_CONFIG, family.network_name)}
    else:
        try:
            layers, alphas = family.pipeline.lora_state_dict(dict(tensors), unet_config=network.config)
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"{file}: not a LoRA of a known tool ({' '.join(str(error).split())[:300]})") from error
        settings = {"network_alphas": alphas}
    bind_layers(family, layers, "default", str(file), **settings)
    save_policy(family, _scaled(network), out, version=0, trainable="lora", base=config.path)
    return len(layers)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error}); name a .safetensors file of LoRA layers") from error
    other = [name for name in tensors if not any(part in name for part in ("lora", ".alpha")) or "dora_scale" in name]
    if other or not tensors:
        raise UserError(f"{file}: holds other tensors than LoRA layers: {show_names(other) or 'none at all'}")
    check_finite(tensors, str(file))
    return tensors


def _peft_settings(file: Path, prefix: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
        return {f"{prefix}.{name}": config[name] for name in PEFT_SETTINGS if name in config}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: cannot be read, but holds the scale of the layers ({error})") from error


def _scaled(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA tensors by the network's names, for layers whose scale is 1."""
    from peft.tuners.lora import LoraLayer

    state = {}
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            up = layer.lora_B["default"].weight * layer.scaling["default"]
            state[f"{name}.lora_A.default.weight"] = layer.lora_A["default"].weight.detach().cpu().contiguous()
            state[f"{name}.lora_B.default.weight"] = up.detach().cpu().contiguous()
    return state
