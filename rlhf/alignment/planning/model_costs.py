"""Bytes and FLOPs of a model in each role, counted on the meta device, without weights."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rlhf.alignment.learner import reads_base
from rlhf.alignment.planning.pass_cost import PassCost, count_cost, run_backward
from rlhf.config.run_config import AlignConfig, ModelConfig
from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.families.open_family import check_guidance, network_on_meta, open_family
from rlhf.diffusion.families.pipeline_folder import INDEX, read_part_config
from rlhf.diffusion.families.written_down import find_written, read_written
from rlhf.diffusion.policy import Policy, TrueGuidance, make_trainable, resolve_model
from rlhf.diffusion.precision import hold_frozen, in_precision
from rlhf.errors import UserError
from rlhf.storage.url_path import as_path

META = torch.device("meta")
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """What a model takes in its roles. Passes are those of one micro-batch of `images`, of `prompts`."""

    pipeline: str
    """Class of the pipeline."""
    parameters: int
    """Numbers in the network, without adapters."""
    trained: int
    """Numbers that are trained."""
    frozen_bytes: int
    """Weights of the network that are not trained, as they are held."""
    largest_layer: int
    """Numbers in the largest layer, which ZeRO-3 gathers whole."""
    vae_bytes: int
    text_bytes: int
    """The text encoders in float32, while they are open."""
    images: int
    prompts: int
    denoising: PassCost
    """One denoising step, as samplers take it."""
    training: PassCost
    """One pass forward and backward; gradients, which stay, are not in its bytes."""
    base: PassCost | None
    """The base policy's output for it, if the loss reads it."""
    decoding: PassCost
    encoding: PassCost
    latents_bytes: int
    """Latents of one image."""
    condition_bytes: int
    """Condition and hole of one image."""
    caption_bytes: int
    """The longest caption's embedding."""


def planned_place(path: str) -> Path:
    """The folder, URL or hub name at `model.path` that configurations are read from; written-down ones come first."""
    return find_written(path) or as_path(resolve_model(path))


def count_numbers(path: str) -> int:
    """Numbers in the network of the model at `model.path`."""
    return sum(p.numel() for p in network_on_meta(planned_place(path)).parameters())


@cache
def count_model(model: ModelConfig, align: AlignConfig, size: tuple[int, int], precision: str) -> ModelCosts:
    """Counts a model at images of `size`, height and width in pixels, in `fp32` or `bf16`.

    Raises UserError if the model's configuration cannot be read, or it cannot paint this size.
    """
    place = planned_place(model.path)
    policy = _policy_of_shapes(model, place, precision)
    family, parameters = policy.family, sum(p.numel() for p in policy.network.parameters())
    passes = _count_passes(policy, align, size)
    weights = list(policy.network.parameters())
    return ModelCosts(
        pipeline=str(read_part_config(place, INDEX)["_class_name"]),
        parameters=parameters,
        trained=sum(p.numel() for p in weights if p.requires_grad),
        frozen_bytes=sum(p.nbytes for p in weights if not p.requires_grad) + _bytes(policy.network.buffers()),
        largest_layer=max(sum(p.numel() for p in m.parameters(recurse=False)) for m in policy.network.modules()),
        vae_bytes=_bytes([*family.pipeline.vae.parameters(), *family.pipeline.vae.buffers()]),
        text_bytes=_count_text_bytes(place),
        images=align.micro_batch_size,
        prompts=align.micro_batch_size // align.samples_per_prompt,
        caption_bytes=_bytes([t for t in (policy.text.embedding, policy.text.pooled) if t is not None]),
        **passes,
    )


def _count_passes(policy: Policy, align: AlignConfig, size: tuple[int, int]) -> dict[str, Any]:
    """The passes of `ModelCosts`, and the sizes of what they read; the policy's network is trainable afterwards."""
    family, (height, width) = policy.family, _cells(policy.family, size)
    shape, images = family.latent_shape(height, width), align.micro_batch_size
    prompts = images // align.samples_per_prompt
    with torch.device(META):
        latents = torch.empty(images, *shape)
        condition = family.join_condition(torch.empty(images, 1, height, width), latents)
        run = _Passes(policy=policy, inputs=(latents, torch.zeros(images), condition))
        passes: dict[str, Any] = {"base": run.forward() if reads_base(align) else None}
        hold_frozen(policy.network, "fp32" if align.trainable == "full" else policy.precision)
        make_trainable(policy, align.trainable, rank=align.lora_rank, targets=align.lora_targets, seed=0)
        passes["denoising"] = run.forward()
        if align.gradient_checkpointing:
            policy.network.enable_gradient_checkpointing()
        passes["training"] = run.both_ways()
        with torch.no_grad():
            passes["decoding"] = count_cost(lambda: family.decode(latents))
            passes["encoding"] = count_cost(lambda: family.encode_images(torch.empty(prompts, 3, *size)))
    mask_bytes = FLOAT_BYTES * height * width
    return passes | {"latents_bytes": latents[:1].nbytes, "condition_bytes": condition[:1].nbytes + mask_bytes}


@dataclass(kw_only=True)
class _Passes:
    """Passes of a micro-batch, by the policy as it is at the time."""

    policy: Policy
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def _run(self) -> torch.Tensor:
        return self.policy.predict(*self.inputs)

    @torch.no_grad()
    def forward(self) -> PassCost:
        """One pass without gradients."""
        return count_cost(self._run)

    def both_ways(self) -> PassCost:
        """One pass forward and backward, into gradients that are there."""
        for parameter in self.policy.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

        def run() -> None:
            output = self._run().sum()
            with in_precision(META, self.policy.precision):  # Checkpointing computes again within it.
                run_backward(output)

        return count_cost(run)


def _policy_of_shapes(model: ModelConfig, place: Path, precision: str) -> Policy:
    plain = model.model_copy(update={"attention": "auto"})
    try:
        check_guidance(plain, place)
        family = open_family(plain, place, META, frozenset())
    except UserError as error:
        names = ", ".join(read_written())
        raise UserError(f"{error}; without a folder or the hub, these configurations are known: {names}") from error
    text = family.longest_text()
    guidance = TrueGuidance(scale=family.default_scale, negative=text) if model.guidance == "true" else None
    return Policy(family=family, text=text, device=META, precision=precision, name=model.path, guidance=guidance)


def _cells(family: ModelFamily, size: tuple[int, int]) -> tuple[int, int]:
    factor = family.native_px // family.native_cells
    if size[0] % factor or size[1] % factor:
        raise UserError(f"images of {size[1]}x{size[0]} px: this model paints multiples of {factor} px")
    return size[0] // factor, size[1] // factor


def _count_text_bytes(place: Path) -> int:
    """Bytes of a pipeline's text encoders in float32."""
    total = 0
    for name, entry in read_part_config(place, INDEX).items():
        if name.startswith("text_encoder") and isinstance(entry, list) and entry[-1]:
            kind: Any = getattr(import_module("transformers"), entry[-1])
            settings = kind.config_class.from_dict(read_part_config(place, name, "config.json"))
            with META:
                total += FLOAT_BYTES * sum(p.numel() for p in kind._from_config(settings).parameters())
    return total


def _bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)
