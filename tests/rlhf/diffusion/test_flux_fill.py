import numpy as np
import pytest
import torch
from PIL import Image
from small_families import CHANNELS, small_fill_pipeline

from rlhf.data.prompts import Prompt
from rlhf.diffusion.denoising import denoise
from rlhf.diffusion.families.flux_fill import FluxFill
from rlhf.errors import UserError


def prompt_of(width: int, height: int, seed: int) -> Prompt:
    """A smooth random picture with a hole of random pixels, so that each of a cell's mask pixels counts."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray((rng.random((3, 4, 3)) * 255).astype(np.uint8)).resize((width, height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    mask = torch.from_numpy(rng.random((1, height, width)) < rng.uniform(0.2, 0.8)).float()
    return Prompt(prompt_id=f"p{seed}", photograph="", source="", hole="", split="", image=pixels, mask=mask)


@torch.no_grad()
def paint(family: FluxFill, prompt: Prompt, noise: torch.Tensor, text: str, steps: int) -> torch.Tensor:
    condition, _ = family.encode_prompts([prompt])
    schedule, embedding = family.schedule(steps, tuple(condition.shape[-2:])), family.embed(text)
    latents = noise
    for step in range(steps):
        latents = denoise(
            lambda x, t: family.predict(family.network, x, t, condition, embedding, "fp32"),
            latents,
            torch.tensor([step]),
            schedule,
        ).mean
    return family.decode(latents)


SIZES = [(64, 64), (64, 96), (96, 64), (48, 80), (80, 48), (112, 64), (16, 32), (128, 48), (64, 128), (96, 96)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_deterministic_steps_paint_what_the_pipelines_own_class_paints(width: int, height: int) -> None:
    pipeline, prompt = small_fill_pipeline(), prompt_of(width, height, seed=width + height)
    family = FluxFill(pipeline, guidance=7.5)
    noise = torch.randn(1, CHANNELS, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    ours = paint(family, prompt, noise, "a cat", steps=3)
    # The class encodes by a sample of the posterior; the family by its mode.
    distribution = pipeline.vae.encode((prompt.image * (prompt.mask < 0.5))[None]).latent_dist.mode()
    pipeline.vae.encode = lambda *_, **__: _Encoded(distribution)
    theirs = pipeline(
        "a cat",
        image=prompt.image[None] / 2 + 0.5,
        mask_image=prompt.mask[None],
        width=width,
        height=height,
        num_inference_steps=3,
        guidance_scale=7.5,
        latents=pipeline._pack_latents(noise, 1, CHANNELS, height // 8, width // 8),
        max_sequence_length=pipeline.tokenizer_2.model_max_length,
        output_type="pt",
    ).images
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=0)


class _Encoded:
    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents


def test_a_size_that_does_not_fill_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="72x64 px: this model paints multiples of 16 px"):
        FluxFill(small_fill_pipeline()).encode_prompts([prompt_of(72, 64, seed=0)])


@torch.no_grad()
def test_a_network_that_is_told_guidance_depends_on_it_and_others_do_not() -> None:
    latents, text = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0)), "a cat"
    for is_told in (True, False):
        outputs = []
        for guidance in (1.0, 30.0):
            family = FluxFill(small_fill_pipeline(guidance_embeds=is_told), guidance=guidance)
            condition = family.join_condition(torch.ones(1, 1, 8, 8), latents)
            time = torch.tensor([500.0])
            outputs.append(family.predict(family.network, latents, time, condition, family.embed(text), "fp32"))
        assert torch.equal(*outputs) is not is_told


@torch.no_grad()
def test_images_of_a_batch_have_texts_and_times_of_their_own() -> None:
    family = FluxFill(small_fill_pipeline())
    prompts = [prompt_of(64, 64, seed) for seed in range(2)]
    condition, _ = family.encode_prompts(prompts)
    latents = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    texts, times = [family.embed(text) for text in ("a cat", "grass")], torch.tensor([900.0, 100.0])
    joined = family.predict(family.network, latents, times, condition, type(texts[0]).join(texts), "fp32")
    for i in range(2):
        alone = family.predict(family.network, latents[[i]], times[[i]], condition[[i]], texts[i], "fp32")
        torch.testing.assert_close(joined[[i]], alone, atol=1e-5, rtol=1e-4)
