import pytest
import torch
from family_painting import SIZES, encode_by_mode, paint, prompt_of
from small_families import small_sd3_pipeline

from rlhf.diffusion.families.blending import extend_into_hole
from rlhf.diffusion.families.stable_diffusion_3 import StableDiffusion3, StableDiffusion3Blend, StableDiffusion3Fill
from rlhf.errors import UserError


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(("kind", "in_channels"), [(StableDiffusion3Fill, 33), (StableDiffusion3Blend, 16)])
def test_deterministic_steps_give_the_latents_of_the_pipelines_own_class(
    kind: type[StableDiffusion3], in_channels: int, width: int, height: int
) -> None:
    """Latents, since the class forgets the VAE's shift when it decodes."""
    pipeline, prompt = small_sd3_pipeline(in_channels=in_channels), prompt_of(width, height, seed=width + height)
    noise = torch.randn(1, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    ours = paint(kind(pipeline), prompt, noise, "a cat", steps=3)
    encode_by_mode(pipeline)
    is_fill = kind is StableDiffusion3Fill
    image = prompt.image[None] if is_fill else extend_into_hole(prompt.image[None], prompt.mask[None])
    theirs = pipeline(
        "a cat",
        image=image / 2 + 0.5,
        mask_image=prompt.mask[None],
        width=width,
        height=height,
        strength=1.0,
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_images_are_decoded_with_the_vaes_shift() -> None:
    family = StableDiffusion3Blend(small_sd3_pipeline(in_channels=16))
    latents, vae = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0)), family.pipeline.vae
    with torch.no_grad():
        expected = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    assert torch.equal(family.decode(latents), expected)


def test_a_size_that_does_not_fill_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="72x64 px: this model paints multiples of 16 px"):
        StableDiffusion3Fill(small_sd3_pipeline(in_channels=33)).encode_prompts([prompt_of(72, 64, seed=0)])
