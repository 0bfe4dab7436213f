"""Trains the built-in model on a folder of photographs: first the VAE, then the inpainting UNet.

Both stages resume from a state file, which is replaced atomically and removed at the end. All randomness depends on
(seed, update) alone, so a resumed run sees the same batches as an uninterrupted one.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image, ImageEnhance

from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.diffusion.builtin.tiny_model import build_pipeline
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_torch_save
from rlhf.storage.images import blank_hole, decode_image, image_to_tensor, list_photographs, mask_to_tensor, square_crop

SIZE_PX = 64
Module = TypeVar("Module", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `rlhf pretrain`."""

    images: Path
    """Folder of photographs."""
    out: Path
    """Folder that receives the pipeline."""
    vae_updates: int = 3000
    """Number of optimizer steps of the VAE."""
    unet_updates: int = 6000
    """Number of optimizer steps of the UNet."""
    micro_batch_size: int = 64
    """Number of crops per UNet update; a VAE update has a quarter of it."""
    pool_size: int = 30_000
    """Number of crops with holes, which are encoded once for all UNet updates."""
    seed: int = 0
    """Seed of weights, crops, holes and noise."""


def pretrain(config: PretrainConfig) -> Path:
    """Trains `tiny` from scratch, or resumes an interrupted run; returns the pipeline folder."""
    paths = list_photographs(config.images)
    if not paths:
        raise UserError(f"{config.images}: no photographs; name a folder with PNG or JPEG files")
    photographs = [decode_image(p) for p in paths]
    torch.manual_seed(config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline()
    vae = _train_vae(pipeline.vae, photographs, config)
    unet = _train_unet(pipeline, vae, photographs, config)
    pipeline.register_modules(vae=vae, unet=unet)
    save_half(pipeline, config.out)
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(config).items()}
    record = settings | {"photographs": [p.name for p in paths]}
    (config.out / "pretrain.json").write_text(json.dumps(record, indent=2))
    for name in ("vae_state.pt", "unet_state.pt"):
        (config.out / name).unlink(missing_ok=True)
    return config.out


def save_half(pipeline: StableDiffusionInpaintPipeline, folder: Path) -> None:
    """Writes the pipeline with VAE and UNet in half precision; diffusers opens it in float32."""
    vae, unet = copy.deepcopy(pipeline.vae).half(), copy.deepcopy(pipeline.unet).half()
    StableDiffusionInpaintPipeline(
        **{**pipeline.components, "vae": vae, "unet": unet}, requires_safety_checker=False
    ).save_pretrained(folder)


def augmented_crop(photographs: list[Image.Image], rng: np.random.Generator, size: int = SIZE_PX) -> Image.Image:
    """Returns a random crop, mirrored and varied in brightness, contrast and colour at random."""
    photograph = photographs[rng.integers(len(photographs))]
    crop = square_crop(photograph, rng, size=size, scale=(0.25, 1.0))
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.1:
        crop = crop.transpose(Image.Transpose.ROTATE_90)
    if rng.random() < 0.2:
        crop = Image.merge("RGB", [crop.split()[i] for i in rng.permutation(3)])
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        crop = enhance(crop).enhance(rng.uniform(0.75, 1.25))
    return crop


def _crop_batch(photographs: list[Image.Image], rng: np.random.Generator, count: int) -> torch.Tensor:
    return torch.stack([image_to_tensor(augmented_crop(photographs, rng)) for _ in range(count)])


def vae_loss(vae: AutoencoderKL, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Returns the L1 errors of pixels, local means, colour differences and gradients, plus a weak KL to N(0, I).

    Colour varies less than luminance; without the terms for colour, saturated colours fade.
    """
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = decoded - images
    loss = error.abs().mean() + 2 * F.avg_pool2d(error, 4).abs().mean() + error.diff(dim=1).abs().mean()
    for scale in (1, 2):
        a, b = (F.avg_pool2d(x, scale) for x in (decoded, images))
        loss = loss + (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean() + (a.diff(dim=-2) - b.diff(dim=-2)).abs().mean()
    return loss + 1e-4 * posterior.kl().mean() / images[0].numel()


def _train_vae(vae: AutoencoderKL, photographs: list[Image.Image], config: PretrainConfig) -> AutoencoderKL:
    batch_size = config.micro_batch_size // 4

    def loss_of(update: int) -> torch.Tensor:
        """Returns the loss of an update, on a batch that depends on the seed and the update alone."""
        rng = np.random.default_rng([config.seed, 1, update])
        images = _crop_batch(photographs, rng, batch_size)
        generator = torch.Generator().manual_seed(update)
        noise = torch.randn(batch_size, 4, SIZE_PX // 4, SIZE_PX // 4, generator=generator)
        return vae_loss(vae, images.to(memory_format=torch.channels_last), noise)

    averaged = train_averaged(
        vae, loss_of, updates=config.vae_updates, peak_lr=1e-3, state_path=config.out / "vae_state.pt", stage="VAE"
    )
    with torch.no_grad():
        rng = np.random.default_rng([config.seed, 2])
        latents = averaged.encode(_crop_batch(photographs, rng, 256)).latent_dist.mean
    averaged.register_to_config(scaling_factor=round(float(1.0 / latents.std()), 5))
    return averaged


@torch.no_grad()
def _encoded_pool(vae: AutoencoderKL, photographs: list[Image.Image], config: PretrainConfig) -> torch.Tensor:
    """Returns encoded crops with holes, [N, 9, h, w]: latents, mask, masked-image latents."""
    path, rows = config.out / "pool.pt", []
    if path.is_file():
        return torch.load(path)
    families = list(FAMILIES)
    chunk = 100
    for start in progress_bar(range(0, config.pool_size, chunk), stage="pretrain: crops"):
        rng = np.random.default_rng([config.seed, 3, start])
        images = _crop_batch(photographs, rng, chunk)
        masks = torch.stack(
            [mask_to_tensor(draw_hole(families[rng.integers(len(families))], rng, SIZE_PX)) for _ in range(chunk)]
        )
        latents = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        masked = vae.encode(blank_hole(images, masks)).latent_dist.mean * vae.config.scaling_factor
        rows.append(torch.cat([latents, F.interpolate(masks, latents.shape[-2:]), masked], dim=1))
    pool = torch.cat(rows)
    atomic_torch_save(pool, path)
    return pool


def _train_unet(
    pipeline: StableDiffusionInpaintPipeline, vae: AutoencoderKL, photographs: list[Image.Image], config: PretrainConfig
) -> UNet2DConditionModel:
    pool = _encoded_pool(vae, photographs, config)
    unet, scheduler = pipeline.unet, pipeline.scheduler
    tokens = pipeline.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipeline.text_encoder(tokens)[0]

    def loss_of(update: int) -> torch.Tensor:
        """Returns the loss of an update, on a batch that depends on the seed and the update alone."""
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + update)
        rows = pool[torch.randint(len(pool), (config.micro_batch_size,), generator=generator)]
        if torch.rand((), generator=generator) < 0.5:
            rows = rows.flip(-1)
        return unet_loss(unet, scheduler, rows, text, generator)

    averaged = train_averaged(
        unet, loss_of, updates=config.unet_updates, peak_lr=8e-4, state_path=config.out / "unet_state.pt", stage="UNet"
    )
    (config.out / "pool.pt").unlink(missing_ok=True)
    return averaged


def unet_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    rows: torch.Tensor,
    text: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Returns the loss of v-prediction (arXiv:2202.00512); all timesteps have equal weight, the hole a fourfold one.

    The early steps choose the colours of the hole. Weights that favour low noise (min-SNR) would leave them untrained.

    Shapes: rows [B, 9, h, w], as `_encoded_pool` returns them; text [1, length, width].
    """
    latents, mask, masked = rows[:, :4], rows[:, 4:5], rows[:, 5:]
    noise = torch.randn(latents.shape, generator=generator)
    timestep = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, timestep)
    target = scheduler.get_velocity(latents, noise, timestep)
    inputs = torch.cat([noisy, mask, masked], dim=1).to(memory_format=torch.channels_last)
    prediction = unet(inputs, timestep, text.expand(len(rows), -1, -1)).sample
    return ((prediction - target).square() * (1.0 + 3.0 * mask)).mean()


Part = torch.nn.Module | torch.optim.Optimizer


def train_averaged(
    module: Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    updates: int,
    peak_lr: float,
    state_path: Path,
    stage: str,
    save_every: int = 200,
) -> Module:
    """Trains by AdamW with warm-up and cosine decay; returns the exponential moving average (EMA) of the weights.

    `loss_of` takes the number of updates done and is the only source of randomness, so a run that resumes from
    `state_path` ends with the same bits as an uninterrupted one.
    """
    module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    averaged = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    parts: dict[str, Part] = {"module": module, "averaged": averaged, "optimizer": optimizer}
    first = _resume(parts, state_path)
    bar = progress_bar(range(first, updates), stage=f"pretrain: {stage}", total=updates, initial=first)
    running = None
    for update in bar:
        optimizer.param_groups[0]["lr"] = _learning_rate(update, updates, peak_lr)
        loss = loss_of(update)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.995, (update + 1) / (update + 10))
        torch._foreach_lerp_(list(averaged.parameters()), list(module.parameters()), 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if (update + 1) % save_every == 0 or update + 1 == updates:
            atomic_torch_save({k: v.state_dict() for k, v in parts.items()} | {"update": update + 1}, state_path)
    return averaged


def _learning_rate(update: int, updates: int, peak_lr: float) -> float:
    warm_up = min(1.0, (update + 1) / 100)
    return peak_lr * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (update / updates))))


def _resume(parts: Mapping[str, Part], state_path: Path) -> int:
    """Loads the saved state into the parts, if there is one; returns the number of updates done."""
    if not state_path.is_file():
        return 0
    state = torch.load(state_path)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["update"]
