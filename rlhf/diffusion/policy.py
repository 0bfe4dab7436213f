"""A policy: a pipeline that inpaints, whose network acts. Loading, training parts, exporting."""

import copy
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rlhf.config.devices import free_bytes, resolve_device, resolve_precision
from rlhf.config.run_config import ModelConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.blending import known_picture
from rlhf.diffusion.families.family import ModelFamily, TextEmbedding
from rlhf.diffusion.families.open_family import (
    UNGUARDED,
    check_guidance,
    open_family,
    read_schedule,
    resolve_model,
)
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.families.text_cache import TextCache, key_of
from rlhf.diffusion.policy_weights import merge_weights
from rlhf.diffusion.precision import hold_frozen
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.errors import UserError
from rlhf.storage.atomic_files import whole_folder
from rlhf.storage.url_path import as_path, local_copy

KEPT_TEXTS = 64
"""Captions whose embeddings a policy keeps in memory."""


@dataclass(frozen=True, kw_only=True)
class TrueGuidance:
    """A second pass with a negative text."""

    scale: float
    """As the family's `guide` takes it."""
    negative: TextEmbedding
    text: str = ""
    """The negative text itself, which some families embed for each picture."""


@dataclass(kw_only=True)
class Policy:
    """A model of some family, with the embedding of the empty text."""

    family: ModelFamily
    text: TextEmbedding
    device: torch.device
    precision: str
    """`fp32` or `bf16`."""
    name: str
    """Where the weights come from: the model's path, or the policy's folder."""
    version: int = 0
    merged: torch.nn.Module | None = None
    """The network with its adapters merged into its weights: faster, and the same up to rounding."""
    guidance: TrueGuidance | None = None
    """None: one pass."""
    texts: TextCache | None = None
    """Embeddings of captions on disk; None: the text encoders of `family` make them."""
    _texts: dict[str, TextEmbedding] = field(default_factory=dict)

    @property
    def network(self) -> Any:
        """The network that acts."""
        return self.family.network

    @property
    def native_px(self) -> int:
        """Side of the square images that the network was made for."""
        return self.family.native_px

    def embed(self, prompts: Sequence[Prompt]) -> TextEmbedding:
        """The embeddings of captions: one if all are the same, else one for each prompt; each is computed once.

        They are read from `texts`, if there are any; see `TextCache.read` for its errors.
        """
        pictures = [known_picture(prompt) if self.family.reads_picture else None for prompt in prompts]
        keys = [key_of(prompt.caption, picture) for prompt, picture in zip(prompts, pictures, strict=True)]
        for key, prompt, picture in zip(keys, prompts, pictures, strict=True):
            if key not in self._texts:
                self._texts[key] = self._embed(prompt.caption, picture)
        texts = [self._texts[key] for key in keys]
        while len(self._texts) > KEPT_TEXTS:
            del self._texts[next(iter(self._texts))]
        return texts[0] if len(set(keys)) == 1 else TextEmbedding.join(texts)

    def _embed(self, caption: str, picture: torch.Tensor | None) -> TextEmbedding:
        if not caption and picture is None:
            return self.text
        text = self._find(caption, picture)
        if picture is None or self.guidance is None:
            return text
        return replace(text, negative=self._find(self.guidance.text, picture))

    def _find(self, text: str, picture: torch.Tensor | None) -> TextEmbedding:
        if self.texts is None:
            return self.family.embed(text, picture)
        return self.texts.read(text, picture).to(self.device)

    def predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding | None = None,
    ) -> torch.Tensor:
        """The network's output in float32, equal to the bit to what the learner computes; see `ModelFamily.predict`.

        Without `text` it is the empty text.
        """
        return self.predict_with(self.network, latents, timestep, condition, text)

    def predict_untrained(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding | None = None,
    ) -> torch.Tensor:
        """`predict` for steps without a ratio, whose rounding does not matter: by the merged network, if any."""
        network = self.network if self.merged is None else self.merged
        return self.predict_with(network, latents, timestep, condition, text)

    def predict_with(
        self,
        network: torch.nn.Module,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: torch.Tensor,
        text: TextEmbedding | None = None,
    ) -> torch.Tensor:
        """The output of another network of the same kind (an engine around it, or a copy), guided if the policy is."""

        def run(told: TextEmbedding) -> torch.Tensor:
            return self.family.predict(network, latents, timestep, condition, told, self.precision)

        told = self.text if text is None else text
        positive = run(told)
        if self.guidance is None:
            return positive
        negative = run(self.guidance.negative if told.negative is None else told.negative)
        return self.family.guide(positive, negative, self.guidance.scale)


def plan_steps(config: ModelConfig, num_inference_steps: int) -> Schedule:
    """The denoising steps of a model from its configuration alone, for checks before processes start.

    Raises UserError if the model or its scheduler is of a class that is not supported.
    """
    return read_schedule(config, as_path(resolve_model(config.path)), num_inference_steps)


_Texts = tuple[TextEmbedding, TrueGuidance | None]
"""The embedding of the empty text, and true guidance, if configured."""


def _open_with_texts(
    config: ModelConfig, place: Path, device: torch.device, parts: Set[Part], cache: TextCache | None
) -> tuple[ModelFamily, _Texts]:
    if cache is not None or Part.TEXT in parts:
        family = open_family(config, place, device, parts)
        return family, _read_texts(config, family, cache)
    with local_copy(place) as local:
        texts = _read_texts(config, open_family(config, local, device, {Part.TEXT}), None)
        return open_family(config, local, device, parts), texts


def _read_texts(config: ModelConfig, family: ModelFamily, cache: TextCache | None) -> _Texts:
    def embed(text: str) -> TextEmbedding:
        return family.embed(text) if cache is None else cache.read(text).to(resolve_device(config.device))

    text = embed("")
    scale = family.default_scale if config.guidance_scale is None else config.guidance_scale
    if config.guidance != "true" or scale == family.unguided_scale:
        return text, None
    negative = config.negative_caption or ""
    return text, TrueGuidance(scale=scale, negative=embed(negative), text=negative)


def load_policy(
    config: ModelConfig,
    adapter: Path | None = None,
    *,
    parts: Set[Part] = UNGUARDED,
    is_trained_whole: bool = False,
    texts: TextCache | None = None,
) -> Policy:
    """Open `parts` of a pipeline (built in, folder or hub) and merge the policy folder `adapter`, if any, into it.

    All texts are read from the cache `texts`, if there is one. Without it and without `Part.TEXT`, the text encoders
    are opened alone for the empty and the negative text, and dropped before anything else is loaded; the policy then
    takes no captions. The network is held in the configured precision, or in float32 if it `is_trained_whole`. Raises
    UserError if a folder is incomplete, damaged or of another kind.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    place = as_path(resolve_model(config.path))
    check_guidance(config, place)
    family, (text, guidance) = _open_with_texts(config, place, device, parts, texts)
    version = merge_weights(family, adapter) if adapter is not None else 0
    if Part.NETWORK in parts:
        hold_frozen(family.network, "fp32" if is_trained_whole else precision)
        family.network.to(device)
    return Policy(
        family=family,
        text=text,
        device=device,
        precision=precision,
        name=config.path if adapter is None else str(adapter),
        version=version,
        guidance=guidance,
        texts=texts,
    )


def make_trainable(
    policy: Policy, trainable: str, *, rank: int, targets: tuple[str, ...] | None, seed: int, keeps_merged: bool = False
) -> None:
    """Add fresh LoRA adapters (a no-op until trained), or unfreeze the whole network.

    `targets` names the modules that get an adapter, by default the family's own. With `keeps_merged`, a network
    without adapters is kept beside them for `update_merged`. Raises UserError if a target names no module of this
    network.
    """
    network = policy.network
    if keeps_merged and trainable == "lora":
        policy.merged = copy.deepcopy(network)
    # DeepSpeed takes no weights in channels_last, and samplers have to round as the learner does.
    network.to(memory_format=torch.contiguous_format)
    if trainable == "full":
        network.requires_grad_(True)
    else:
        add_adapters(policy, rank=rank, targets=targets, seed=seed)


def add_adapters(policy: Policy, *, rank: int, targets: tuple[str, ...] | None, seed: int) -> None:
    """Add fresh LoRA adapters in float32; see `make_trainable`."""
    network = policy.network
    from peft import LoraConfig

    names = [name for name, _ in network.named_modules()]
    chosen = targets or policy.family.lora_targets
    for target in chosen if targets else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"align.lora_targets: {target!r} names no module of this network")
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(chosen), init_lora_weights=True))
    for parameter in network.parameters():
        if parameter.requires_grad:  # peft gives adapters the precision of the layer that they belong to.
            parameter.data = parameter.data.float()


def keeps_merged(policy: Policy, choice: bool | str) -> bool:
    """Whether a sampler holds a merged copy, by `align.merged_sampling`; raises UserError if it cannot."""
    if policy.precision != "fp32":
        if choice is True:
            raise UserError(
                "align.merged_sampling: in bf16 a merged weight would round small updates away; "
                "use auto or false, or model.precision fp32"
            )
        return False
    size = sum(p.nbytes for p in policy.network.parameters())
    return choice is True or (choice == "auto" and 4 * size <= free_bytes(policy.device))


@torch.no_grad()
def update_merged(policy: Policy) -> None:
    """Merge the adapters, as they are now, into `policy.merged`, a copy of the network from before it had any."""
    if policy.merged is None:
        return
    from peft.tuners.lora import LoraLayer

    for name, layer in policy.network.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            merged: Any = policy.merged.get_submodule(name).weight
            merged.copy_(weight + layer.get_delta_weight("default"))


def export_policy(config: ModelConfig, adapter: Path, out: Path) -> Path:
    """Write a complete pipeline folder in which the policy's weights are merged into the network."""
    policy = load_policy(config.model_copy(update={"device": "cpu", "precision": "fp32"}), adapter)
    with whole_folder(out, "model_index.json") as local:
        policy.family.pipeline.save_pretrained(local)
    return out
