"""LoRA layers on a family's network: bound entirely, or refused with the names that do not fit."""

from collections.abc import Mapping
from typing import Any

import torch

from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.part_weights import show_names
from rlhf.errors import UserError


def bind_layers(
    family: ModelFamily, layers: Mapping[str, torch.Tensor], name: str, place: str, **settings: Any
) -> None:
    """Add LoRA layers, by diffusers' names, to the family's network as the adapter `name`.

    `settings` are those of `load_lora_adapter`. Raises UserError, naming `place` and the layers, if a layer belongs to
    another part of the pipeline, or to a module that the network does not have or has in another shape.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft
    from peft import get_peft_model_state_dict

    prefix = f"{family.network_name}."
    others = {layer for layer in layers if not layer.startswith(prefix)}
    if others or not layers:
        what = f"has layers outside the {family.network_name}: {show_names(others)}" if others else "has no layers"
        raise UserError(f"{place}: {what}; use a LoRA of the {family.network_name} alone")
    try:
        family.network.load_lora_adapter(dict(layers), prefix=family.network_name, adapter_name=name, **settings)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{place}: does not load onto this base model ({reason}); name its own with model.path"
        ) from error
    own = {layer.removeprefix(prefix): tensor for layer, tensor in layers.items()}
    if not any(".lora_A" in layer for layer in own):
        own = convert_unet_state_dict_to_peft(own)
    bound = {_module(layer) for layer in get_peft_model_state_dict(family.network, adapter_name=name)}
    if odd := {_module(layer) for layer in own} - bound:
        family.network.delete_adapters(name)
        raise UserError(f"{place}: does not fit this base model: {show_names(odd)}; name its own with model.path")


def _module(layer: str) -> str:
    return layer.partition(".lora_")[0]
