"""An image painted by a family's verbs, to be compared with the one that the pipeline's own class paints."""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from rlhf.data.prompts import Prompt
from rlhf.diffusion.denoising import denoise, finish_known, keep_known
from rlhf.diffusion.families.family import ModelFamily, TextEmbedding, cells_of

SIZES = [(64, 64), (64, 96), (96, 64), (48, 80), (80, 48), (112, 64), (16, 32), (128, 48), (64, 128), (96, 96)]
"""Widths and heights in pixels."""


def prompt_of(width: int, height: int, seed: int) -> Prompt:
    """A smooth random picture with a hole of random pixels, so that each of a cell's mask pixels counts."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray((rng.random((3, 4, 3)) * 255).astype(np.uint8)).resize((width, height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    mask = torch.from_numpy(rng.random((1, height, width)) < rng.uniform(0.2, 0.8)).float()
    return Prompt(prompt_id=f"p{seed}", photograph="", source="", hole="", split="", image=pixels, mask=mask)


@torch.no_grad()
def paint(family: ModelFamily, prompt: Prompt, noise: torch.Tensor, text: str, steps: int) -> torch.Tensor:
    """Finished latents by a rollout's own steps, without noise: [1, C, h, w]."""
    condition, _ = family.encode_prompts([prompt])
    schedule, embedding = family.schedule(steps, cells_of(condition)), family.embed(text)
    known, latents = family.known_latents(condition), noise
    for step in range(steps):
        index = torch.tensor([step])
        predict = partial(predict_for, family, condition, embedding)
        latents = keep_known(denoise(predict, latents, index, schedule).mean, known, noise, schedule, index)
    return finish_known(latents, known)


def predict_for(
    family: ModelFamily, condition: torch.Tensor, text: TextEmbedding, latents: torch.Tensor, time: torch.Tensor
) -> torch.Tensor:
    return family.predict(family.network, latents, time, condition, text, "fp32")


def encode_by_mode(pipeline: Any) -> None:
    """The classes encode by a sample of the posterior; the family by its mode."""
    encode = pipeline.vae.encode
    pipeline.vae.encode = lambda images: _Encoded(encode(images).latent_dist.mode())


class _Encoded:
    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents
