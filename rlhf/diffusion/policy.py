"""A policy: an inpainting pipeline of which the UNet acts. Loading, adapters, saving, exporting."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlhf.config.devices import resolve_device
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.stable_diffusion import TextEmbedding, embed_text, open_pipeline
from rlhf.diffusion.policy_folders import MANIFEST, SCHEMA_VERSION, read_manifest
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json, whole_folder
from rlhf.storage.checksum import checksum
from rlhf.storage.url_path import as_path, local_copy

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

# diffusers and peft take 4 s to import, which half of this module's users need not wait for.

TINY = Path(__file__).parent / "builtin" / "tiny"


@dataclass(kw_only=True)
class Policy:
    """The pipeline, its schedule and the embedding of the empty text."""

    pipeline: "StableDiffusionInpaintPipeline"
    scheduler: "DDIMScheduler"
    text: TextEmbedding
    device: torch.device
    precision: str
    version: int = 0
    merged: "UNet2DConditionModel | None" = None
    """The network with its adapters merged into its weights: faster, and the same up to rounding."""

    @property
    def unet(self) -> "UNet2DConditionModel":
        """The network that acts."""
        return self.pipeline.unet

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return self.pipeline.vae.config.latent_channels

    @property
    def native_px(self) -> int:
        """Side in pixels of the square images that the UNet was made for."""
        return self.unet.config.sample_size * self.pipeline.vae_scale_factor

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The UNet's output in float32, to the bit what the learner computes; see `predict_with`."""
        return predict_with(self.unet, latents, timestep, condition, self.text, self.precision)

    def predict_untrained(self, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """`predict` where no ratio will be taken, so that rounding does not matter: by the merged network if kept."""
        unet = self.unet if self.merged is None else self.merged
        return predict_with(unet, latents, timestep, condition, self.text, self.precision)


def predict_with(
    unet: "UNet2DConditionModel",
    latents: torch.Tensor,
    timestep: torch.Tensor,
    condition: torch.Tensor,
    text: TextEmbedding,
    precision: str,
) -> torch.Tensor:
    """One forward pass of the 9-channel UNet: the same in rollout, training, evaluation and serving.

    Shapes: latents [B, 4, h, w]; timestep int64 [B]; condition [B, 5, h, w] (mask, masked-image
    latents). Returns float32 [B, 4, h, w].
    """
    inputs = torch.cat([latents, condition], dim=1)
    with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return unet(inputs, timestep, **text.unet_inputs(latents), return_dict=False)[0].float()


def resolve_model(path: str) -> str:
    """`tiny` to the built-in folder; anything else unchanged."""
    return str(TINY) if path == "tiny" else path


def load_policy(config: ModelConfig, adapter: Path | None = None, *, with_safety_checker: bool = False) -> Policy:
    """Open a pipeline (built in, folder or hub) and merge the policy folder `adapter`, if any, into its UNet.

    Raises UserError where a folder is incomplete or of another kind.
    """
    from diffusers import DDIMScheduler

    device = resolve_device(config.device)
    with local_copy(as_path(resolve_model(config.path))) as place:
        pipeline = open_pipeline(config, str(place), device, with_safety_checker=with_safety_checker)
    version = _apply_adapter(pipeline, adapter) if adapter is not None else 0
    return Policy(
        pipeline=pipeline,
        scheduler=DDIMScheduler.from_config(pipeline.scheduler.config),
        text=embed_text(pipeline),
        device=device,
        precision=config.precision,
        version=version,
    )


def _apply_adapter(pipeline: "StableDiffusionInpaintPipeline", folder: Path) -> int:
    manifest = read_manifest(folder)
    if manifest["trainable"] == "lora":
        with local_copy(folder) as local:
            pipeline.load_lora_weights(local)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    else:
        pipeline.unet = open_unet(folder, pipeline)
    return int(manifest["policy_version"])


def open_unet(folder: Path, pipeline: "StableDiffusionInpaintPipeline") -> "UNet2DConditionModel":
    """The frozen UNet of a policy folder whose `trainable` is `full`, on the pipeline's device."""
    with local_copy(folder) as local:
        unet = type(pipeline.unet).from_pretrained(local / "unet").to(pipeline.device)
    return unet.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def check_weights(folder: Path) -> None:
    """UserError where a policy folder's weights cannot be read, or are not those that its manifest's checksum is of."""
    manifest = read_manifest(folder)
    is_lora = manifest["trainable"] == "lora"
    try:
        with local_copy(folder) as local:
            files = list(local.glob("*.safetensors") if is_lora else (local / "unet").glob("*.safetensors"))
            tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({error}); write the policy again") from error
    state = {_parameter_name(name): tensor for name, tensor in tensors.items()} if is_lora else tensors
    if checksum(state) != manifest["checksum"]:
        raise UserError(f"{folder}: its weights are not those of its {MANIFEST} (checksum); write the policy again")


def make_trainable(
    policy: Policy, trainable: str, *, rank: int, targets: tuple[str, ...], seed: int, keeps_merged: bool = False
) -> None:
    """Add fresh LoRA adapters (a no-op until trained), or unfreeze the whole UNet.

    Beside adapters a UNet without them is kept for `update_merged`, if asked for. Raises UserError where a target names
    no module of this UNet.
    """
    if keeps_merged and trainable == "lora":
        policy.merged = copy.deepcopy(policy.unet)
    # DeepSpeed takes no weights in channels_last, and samplers have to round as the learner does.
    policy.unet.to(memory_format=torch.contiguous_format)
    if trainable == "full":
        policy.unet.requires_grad_(True)
        return
    from peft import LoraConfig

    names = [name for name, _ in policy.unet.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"align.lora_targets: {target!r} names no module of this UNet")
    torch.manual_seed(seed)
    policy.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights=True))


@torch.no_grad()
def update_merged(policy: Policy) -> None:
    """Merge the adapters, as they are now, into `policy.merged`, a copy of the UNet from before it had any."""
    if policy.merged is None:
        return
    from peft.tuners.lora import LoraLayer

    for name, layer in policy.unet.named_modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            policy.merged.get_submodule(name).weight.copy_(weight + layer.get_delta_weight("default"))


@contextmanager
def base_policy(unet: "UNet2DConditionModel") -> Iterator[None]:
    """Within the block the adapters are off: the UNet is the base policy, with no second copy."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def trainable_state(unet: "UNet2DConditionModel") -> dict[str, torch.Tensor]:
    """Copies of the trained tensors by name, on the CPU."""
    return {n: p.detach().cpu().clone() for n, p in unet.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable_state(unet: "UNet2DConditionModel", state: Mapping[str, torch.Tensor]) -> None:
    """Put `trainable_state` into a UNet of the same kind; ValueError where names differ."""
    own = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[:3]
        raise ValueError(f"weights do not fit this UNet: {odd}")
    for name, parameter in own.items():
        parameter.copy_(state[name])


def read_trainable_state(folder: Path, unet: "UNet2DConditionModel", trainable: str) -> dict[str, torch.Tensor]:
    """The tensors of a policy folder by the names of `trainable_state(unet)`, to start training from.

    Raises UserError where the folder is incomplete, or its adapters are of another kind, rank or modules.
    """
    check_start(folder, trainable)
    own = trainable_state(unet)
    with local_copy(folder) as local:
        if trainable == "full":
            found = dict(type(unet).from_pretrained(local / "unet").named_parameters())
        else:
            from diffusers import StableDiffusionInpaintPipeline

            layers, _ = StableDiffusionInpaintPipeline.lora_state_dict(local)
            found = {_parameter_name(name): tensor for name, tensor in layers.items()}
    if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(f"{folder}: its adapters are of another rank or on other modules than align.lora_* say")
    return {name: tensor.detach().to(own[name]) for name, tensor in found.items()}


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What of `align` a policy folder was trained with: `trainable`, and rank and targets of its adapters."""
    trainable = read_manifest(folder)["trainable"]
    if trainable == "full":
        return {"trainable": trainable}
    from diffusers import StableDiffusionInpaintPipeline

    layers, _ = StableDiffusionInpaintPipeline.lora_state_dict(folder)
    down = {name.removesuffix(".lora_A.weight"): t for name, t in layers.items() if name.endswith(".lora_A.weight")}
    targets = tuple(sorted(name.removeprefix("unet.") for name in down))
    return {"trainable": trainable, "lora_rank": len(next(iter(down.values()))), "lora_targets": targets}


def _parameter_name(layer: str) -> str:
    """`unet.mid.to_q.lora_A.weight`, as diffusers writes it, to the name that the UNet's own adapter has."""
    return f"{layer.removeprefix('unet.').removesuffix('.weight')}.default.weight"


def check_start(folder: Path, trainable: str, base: str | None = None) -> None:
    """UserError where training cannot start from a policy folder: incomplete, of another kind or base model."""
    manifest = read_manifest(folder)
    if manifest["trainable"] != trainable:
        raise UserError(f"{folder}: holds `{manifest['trainable']}` weights, but align.trainable is `{trainable}`")
    if base is not None and manifest["base_model"] != base:
        raise UserError(f"{folder}: is a policy of {manifest['base_model']}, but model.path is {base}")


def save_policy(
    policy: Policy, state: dict[str, torch.Tensor], folder: Path, *, version: int, trainable: str, base: str
) -> None:
    """Write trained tensors as a policy folder: LoRA as diffusers loads it, or a UNet; the manifest last."""
    with whole_folder(folder, MANIFEST) as local:
        if trainable == "lora":
            from diffusers import StableDiffusionInpaintPipeline
            from peft import get_peft_model_state_dict

            layers = get_peft_model_state_dict(policy.unet, state_dict=state)
            StableDiffusionInpaintPipeline.save_lora_weights(local, unet_lora_layers=layers)
        else:
            unet = type(policy.unet).from_config(policy.unet.config)
            unet.load_state_dict(state)
            unet.save_pretrained(local / "unet")
        atomic_write_json(
            local / MANIFEST,
            {
                "schema_version": SCHEMA_VERSION,
                "policy_version": version,
                "trainable": trainable,
                "base_model": base,
                "checksum": checksum(state),
            },
        )


def export_policy(config: ModelConfig, adapter: Path, out: Path) -> Path:
    """Write a complete pipeline folder in which the policy's weights are merged into the UNet."""
    policy = load_policy(config, adapter)
    with whole_folder(out, "model_index.json") as local:
        policy.pipeline.save_pretrained(local)
    return out
