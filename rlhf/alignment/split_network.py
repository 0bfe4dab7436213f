"""Opens a network for ZeRO stage 3, layer by layer, so that no rank ever holds the whole of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlhf.alignment.deepspeed_engine import prepare_deepspeed
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.open_family import resolve_model
from rlhf.diffusion.families.part_weights import TensorFiles, show_names
from rlhf.diffusion.families.pipeline_folder import fetch
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.precision import hold_frozen
from rlhf.errors import UserError
from rlhf.storage.url_path import as_path, local_copy


def load_split_policy(
    config: ModelConfig,
    *,
    is_trained_whole: bool = False,
    weights: Path | None = None,
    texts: TextCache | None = None,
) -> Policy:
    """`load_policy` of the network alone, split over the ranks of the process group; all ranks call it.

    `weights` is a policy folder with a whole network, whose weights take the place of the model's. Raises UserError if
    the weights are no whole safetensors files.
    """
    policy = load_policy(config, parts=frozenset(), texts=texts)
    place = as_path(resolve_model(config.path)) if weights is None else weights
    with local_copy(place) as local:
        folder = fetch(local, config.variant) if weights is None else local
        tensors = TensorFiles(folder / policy.family.network_name, config.variant if weights is None else None)
        precision = "fp32" if is_trained_whole else policy.precision
        policy.family.network = _open_split(policy.network, tensors, precision, policy.device, str(place))
    return policy


def _open_split(
    empty: Any, tensors: Mapping[str, torch.Tensor], precision: str, device: torch.device, place: str
) -> torch.nn.Module:
    """A frozen network like `empty`, which has no memory, with these tensors; each layer is split before the next."""
    import deepspeed
    from accelerate import init_empty_weights

    prepare_deepspeed(device)
    with init_empty_weights(include_buffers=False):
        network: torch.nn.Module = type(empty).from_config(empty.config)
    network.requires_grad_(False).eval()
    names = network.state_dict().keys()
    if odd := names ^ tensors.keys():
        raise UserError(f"{place}: its weights lack or hold unknown {show_names(odd)}; fetch the model again")
    # Children first, since DeepSpeed splits all of a module that is not split yet.
    for name, module in reversed(list(network.named_modules())):
        prefix = f"{name}." if name else ""
        for own in [own for own, _ in module.named_parameters(recurse=False)]:
            module.register_parameter(own, torch.nn.Parameter(tensors[prefix + own], requires_grad=False))
        for own, buffer in list(module.named_buffers(recurse=False)):
            kept = tensors.get(prefix + own, buffer)
            module.register_buffer(own, kept.to(device), own not in module._non_persistent_buffers_set)
        hold_frozen(module, precision)
        deepspeed.zero.Init(module=module, mem_efficient_linear=False, dtype=torch.float32)
    return network


@contextmanager
def shapes_without_memory(network: torch.nn.Module) -> Iterator[bool]:
    """Within the block a split network's parameters show their shapes, for code that reads them; no values are there.

    Gives whether the network is split.
    """
    split: list[Any] = [p for p in network.parameters() if hasattr(p, "ds_id")]
    for parameter in split:
        parameter.data = torch.empty(1, dtype=parameter.dtype, device=parameter.device).expand(parameter.ds_shape)
    yield bool(split)
    for parameter in split:
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
