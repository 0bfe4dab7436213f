"""The policies that a replica holds: a base model, and on it adapters and other UNets, loaded when first asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rlhf.config.devices import resolve_device
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.stable_diffusion import TextEmbedding, embed_text
from rlhf.diffusion.policy import load_policy, open_unet, predict_with
from rlhf.diffusion.policy_folders import read_manifest
from rlhf.errors import UserError
from rlhf.promotion.catalogue import ServedPolicy, describe_policy
from rlhf.storage.url_path import local_copy
from serve.settings import EngineSettings

NO_ADAPTER = "__base__"
"""How peft calls the base model among the adapters of a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPolicy:
    """Where a policy's weights are."""

    unet: Any
    """Shared by all LoRA policies and the base model."""
    adapter: str
    """Name of its LoRA in `unet`."""


class PolicyShelf:
    """The base model and the policies on it. Not for several threads at a time: loading changes the UNet's layers."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        device = resolve_device(settings.device)
        on_gpu = device.type == "cuda"
        precision = ("bf16" if on_gpu else "fp32") if settings.precision == "auto" else settings.precision
        self._config = ModelConfig(
            path=model, device=settings.device, precision=precision, attention=settings.attention
        )
        self.base = load_policy(self._config, with_safety_checker=True)
        self._settings = settings
        self._base_unet = self._prepare(self.base.unet)
        self._loaded: dict[str, LoadedPolicy] = {}
        self._has_adapters = False

    def _prepare(self, unet: Any) -> Any:
        if self._settings.compile:
            unet.compile_repeated_blocks(dynamic=True)  # of the whole UNet it takes many minutes on a CPU
        return unet

    def take(self, policy: ServedPolicy, in_use: Sequence[LoadedPolicy]) -> LoadedPolicy:
        """The policy's weights, loaded where they are not yet; those `in_use` are not dropped to make room.

        Raises UserError where its folder is incomplete, damaged, or of another base model.
        """
        if policy.folder is None:
            return LoadedPolicy(unet=self._base_unet, adapter=NO_ADAPTER)
        loaded = self._loaded.pop(policy.version, None)
        self._make_room(in_use)
        if loaded is None:
            try:
                loaded = self._load(policy.folder, policy.version)
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
                raise UserError(f"{policy.folder}: does not load onto this base model ({error})") from error
        self._loaded[policy.version] = loaded  # at the end: the first is the one not used for longest
        return loaded

    def _load(self, folder: Path, version: str) -> LoadedPolicy:
        found = describe_policy(folder).version
        if found != version:
            raise UserError(f"{folder}: holds policy {found}, not {version}; promote it again")
        if read_manifest(folder)["trainable"] == "full":
            return LoadedPolicy(unet=self._prepare(open_unet(folder, self.base.pipeline)), adapter=NO_ADAPTER)
        if self._settings.compile:  # mixed adapters would have it compiled anew for each mixture
            return LoadedPolicy(unet=self._prepare(load_policy(self._config, folder).unet), adapter=NO_ADAPTER)
        with local_copy(folder) as local:
            layers, _ = self.base.pipeline.lora_state_dict(local)
        self.base.unet.load_lora_adapter(layers, prefix="unet", adapter_name=version)
        self._has_adapters = True
        return LoadedPolicy(unet=self._base_unet, adapter=version)

    def _make_room(self, in_use: Sequence[LoadedPolicy]) -> None:
        idle = [version for version, loaded in self._loaded.items() if loaded not in in_use]
        for version in idle[: max(0, len(self._loaded) - self._settings.max_policies + 1)]:
            dropped = self._loaded.pop(version)
            if dropped.adapter != NO_ADAPTER:
                self.base.unet.delete_adapters(version)

    def embed(self, text: str) -> TextEmbedding:
        """What the UNet is told for a prompt."""
        return embed_text(self.base.pipeline, text) if text else self.base.text

    def predict(
        self,
        unet: Any,
        adapters: Sequence[str],
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
    ) -> torch.Tensor:
        """One forward pass in which every image has its own adapter, timestep and text; see `predict_with`."""
        is_mixed = self._has_adapters and unet is self._base_unet
        with _adapters_of_rows(unet, adapters) if is_mixed else nullcontext():
            return predict_with(unet, latents, timestep, condition, text, self.base.precision)


@contextmanager
def _adapters_of_rows(unet: Any, names: Sequence[str]) -> Iterator[None]:
    """Within the block, row i of a batch passes through adapter `names[i]`.

    peft mixes adapters where a layer is told `adapter_names`; its own models pass them down by hooks like these, but
    a UNet into which diffusers has put the layers does not.
    """
    from peft.tuners.lora import LoraLayer

    def add_names(module: Any, args: tuple, kwargs: dict[str, Any], adapter_names: list[str]) -> tuple[tuple, dict]:
        return args, kwargs | {"adapter_names": adapter_names}

    hook = partial(add_names, adapter_names=list(names))
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
