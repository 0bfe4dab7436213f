"""Fills holes by the base models and by classical methods."""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FluxFillPipeline, StableDiffusionInpaintPipeline

from rlhf.diffusion.builtin.base_denoisers import TEXT_TOKENS
from rlhf.diffusion.builtin.base_vae import FACTOR
from rlhf.diffusion.builtin.denoiser_loss import image_ids, pack
from rlhf.diffusion.families.transformer import evenly_shifted
from rlhf.diffusion.steps.step_rule import Prediction
from rlhf.evaluation.classical_fills import open_classical
from rlhf.storage.images import blank_hole, composite, from_8bit, to_8bit


@torch.no_grad()
def fill_unet(
    pipeline: StableDiffusionInpaintPipeline, images: torch.Tensor, masks: torch.Tensor, steps: int, seed: int
) -> torch.Tensor:
    """Returns one sample per prompt by deterministic DDIM; known pixels stay.

    Shapes: images [B, 3, H, W], masks [B, 1, H, W].
    """
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    tokens = pipeline.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    text = pipeline.text_encoder(tokens)[0].expand(len(images), -1, -1)
    masked = _encode(pipeline, blank_hole(images, masks))
    mask = F.interpolate(masks, masked.shape[-2:])
    latents = torch.randn(masked.shape, generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        predicted = pipeline.unet(torch.cat([latents, mask, masked], dim=1), timestep, text).sample
        latents = scheduler.step(predicted, timestep, latents, eta=0.0).prev_sample
    return composite(_decode(pipeline, latents), images, masks)


@torch.no_grad()
def fill_transformer(
    pipeline: FluxFillPipeline, images: torch.Tensor, masks: torch.Tensor, steps: int, seed: int, *, order: int = 1
) -> torch.Tensor:
    """Returns one sample per prompt by steps of an `order`, shifted as the pipeline's are; known pixels stay."""
    text, pooled, text_ids = pipeline.encode_prompt(prompt="", prompt_2=None, max_sequence_length=TEXT_TOKENS)
    masked = _encode(pipeline, blank_hole(images, masks))
    condition = torch.cat([pack(masked), pack(F.pixel_unshuffle(masks, FACTOR))], dim=2)
    latents = pack(torch.randn(masked.shape, generator=torch.Generator().manual_seed(seed)))
    schedule = evenly_shifted(pipeline.scheduler, steps, tokens=latents.shape[1])
    predictions: tuple[Prediction, ...] = ()
    for step, sigma in enumerate(schedule.sigmas.tolist()):
        velocity = pipeline.transformer(
            hidden_states=torch.cat([latents, condition], dim=2),
            timestep=torch.full((len(images),), sigma),
            pooled_projections=pooled.expand(len(images), -1),
            encoder_hidden_states=text.expand(len(images), -1, -1),
            txt_ids=text_ids,
            img_ids=image_ids(*masked.shape[-2:]),
        ).sample
        now = Prediction(step=step, latents=latents, clean=latents - sigma * velocity)
        predictions = (now, *predictions)[:order]
        latents = schedule.multistep(predictions)
    height, width = (side // 2 for side in masked.shape[-2:])
    unpacked = F.pixel_shuffle(latents.transpose(1, 2).unflatten(2, (height, width)), 2)
    return composite(_decode(pipeline, unpacked), images, masks)


def fill_classical(name: str, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the fills by `biharmonic`, `telea` or `navier-stokes`."""
    fill = open_classical(name)
    filled = []
    for image, mask in zip(images, masks, strict=True):
        pixels = to_8bit(image).permute(1, 2, 0).numpy()
        filled.append(from_8bit(torch.from_numpy(fill(pixels, mask[0].numpy() > 0.5)).permute(2, 0, 1)))
    return torch.stack(filled)


def _encode(pipeline: StableDiffusionInpaintPipeline | FluxFillPipeline, images: torch.Tensor) -> torch.Tensor:
    return pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor


def _decode(pipeline: StableDiffusionInpaintPipeline | FluxFillPipeline, latents: torch.Tensor) -> torch.Tensor:
    return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
