import pytest
import torch
from family_painting import prompt_of
from small_families import small_sd3_pipeline

from rlhf.diffusion.families.stable_diffusion_3 import StableDiffusion3Blend, StableDiffusion3Fill
from rlhf.errors import UserError


def test_images_are_decoded_with_the_vaes_shift() -> None:
    family = StableDiffusion3Blend(small_sd3_pipeline(in_channels=16))
    latents, vae = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), family.pipeline.vae
    with torch.no_grad():
        expected = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert torch.equal(family.decode(latents), expected)


def test_a_size_that_does_not_fill_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="72x64 px: this model paints multiples of 16 px"):
        StableDiffusion3Fill(small_sd3_pipeline(in_channels=33)).encode_prompts([prompt_of(72, 64, seed=0)])
