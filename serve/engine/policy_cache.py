"""The policies in a replica's memory: a base model, with adapters and other networks loaded at their first use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rlhf.config.run_config import ModelConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.family import TextEmbedding
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.diffusion.policy_weights import load_adapter, open_network
from rlhf.diffusion.precision import hold_frozen
from rlhf.errors import UserError
from rlhf.promotion.catalogue import ServedPolicy, describe_policy
from serve.settings import EngineSettings

NO_ADAPTER = "__base__"
"""peft's name for the base model among the adapters of a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPolicy:
    """A policy's weights in memory."""

    network: Any
    """Shared by the base model and all LoRA policies."""
    adapter: str
    """Name of the policy's LoRA in `network`."""


class PolicyCache:
    """The base model and the policies on it. For one thread at a time, since loading changes the network's layers."""

    def __init__(self, model: str, settings: EngineSettings) -> None:
        self._config = ModelConfig(
            path=model, device=settings.device, precision=settings.precision, attention=settings.attention
        )
        self.base = load_policy(self._config, parts=frozenset(Part))
        self._settings = settings
        self._base_network = self._prepare(self.base.network)
        self._loaded: dict[str, LoadedPolicy] = {}
        self._has_adapters = False

    def _prepare(self, network: Any) -> Any:
        if self._settings.compile:
            # Compiling the whole network takes many minutes on a CPU.
            network.compile_repeated_blocks(dynamic=True)
        return network

    def take(self, policy: ServedPolicy, in_use: Sequence[LoadedPolicy]) -> LoadedPolicy:
        """Return the policy's weights, loading them at the first use; weights `in_use` are not dropped to make room.

        Raises UserError if its folder is incomplete, damaged, or of another base model.
        """
        if policy.folder is None:
            return LoadedPolicy(network=self._base_network, adapter=NO_ADAPTER)
        loaded = self._loaded.pop(policy.version, None)
        self._make_room(in_use)
        if loaded is None:
            try:
                loaded = self._load(policy.folder, policy.version)
            except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
                raise UserError(f"{policy.folder}: does not load onto this base model ({error})") from error
        self._loaded[policy.version] = loaded  # at the end: the first is the least recently used
        return loaded

    def _load(self, folder: Path, version: str) -> LoadedPolicy:
        found = describe_policy(folder).version
        if found != version:
            raise UserError(f"{folder}: holds policy {found}, not {version}; promote it again")
        if read_manifest(folder)["trainable"] == "full":
            network = open_network(folder, self.base.family)
            hold_frozen(network, self.base.precision)
            return LoadedPolicy(network=self._prepare(network), adapter=NO_ADAPTER)
        if self._settings.compile:  # mixed adapters would be compiled anew for each mixture
            return LoadedPolicy(network=self._prepare(load_policy(self._config, folder).network), adapter=NO_ADAPTER)
        load_adapter(self.base.family, folder, version)
        self._has_adapters = True
        return LoadedPolicy(network=self._base_network, adapter=version)

    def _make_room(self, in_use: Sequence[LoadedPolicy]) -> None:
        idle = [version for version, loaded in self._loaded.items() if loaded not in in_use]
        for version in idle[: max(0, len(self._loaded) - self._settings.max_policies + 1)]:
            dropped = self._loaded.pop(version)
            if dropped.adapter != NO_ADAPTER:
                self._base_network.delete_adapters(version)

    def embed(self, text: str, prompt: Prompt) -> TextEmbedding:
        """The embedding of a text; where it depends on the image, with that of the empty text as its negative."""
        told, empty = (self.base.embed([replace(prompt, caption=caption)]) for caption in (text, ""))
        return replace(told, negative=empty) if self.base.family.reads_picture else told

    def predict(
        self,
        network: Any,
        adapters: Sequence[str],
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding,
    ) -> torch.Tensor:
        """One forward pass in which every image has its own adapter, timestep and text; see `ModelFamily.predict`."""
        is_mixed = self._has_adapters and network is self._base_network
        with _adapters_of_rows(network, adapters) if is_mixed else nullcontext():
            return self.base.family.predict(network, latents, timestep, condition, text, self.base.precision)


@contextmanager
def _adapters_of_rows(network: Any, names: Sequence[str]) -> Iterator[None]:
    """Send row i of a batch through adapter `names[i]` within the block.

    peft mixes adapters if a layer gets `adapter_names`. Its own models pass them down by hooks like these; a network
    whose layers were added by diffusers does not.
    """
    from peft.tuners.lora import LoraLayer

    def add_names(module: Any, args: tuple, kwargs: dict[str, Any], adapter_names: list[str]) -> tuple[tuple, dict]:
        return args, kwargs | {"adapter_names": adapter_names}

    hook = partial(add_names, adapter_names=list(names))
    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
