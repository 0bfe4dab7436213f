from pathlib import Path

import pytest
import torch
from family_painting import prompt_of
from small_families import small_sd3_pipeline

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.open_family import check_sizes
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


def test_a_side_with_more_tokens_than_the_transformer_has_places_for_is_refused_before_a_run(tmp_path: Path) -> None:
    """The class takes sides of at most `pos_embed_max_size` tokens; its own refusal would come within a run."""
    pipeline = small_sd3_pipeline(in_channels=16)
    pipeline.save_config(tmp_path)
    for part in ("vae", "transformer"):
        getattr(pipeline, part).save_config(tmp_path / part)
    longest = 16 * pipeline.transformer.config.pos_embed_max_size
    sizes = {"a": (64, longest), "b": (64, longest + 16)}
    with pytest.raises(UserError, match=f"prompt b: is {longest + 16}x64 px, .* of 16 px up to {longest} px; cut"):
        check_sizes(ModelConfig(path=str(tmp_path)), sizes)
    family, largest = StableDiffusion3Blend(pipeline), [prompt_of(longest, 64, seed=0)]
    assert family.encode_prompts(largest)[0].shape[-1] == longest // 8
    with pytest.raises(UserError, match=f"multiples of 16 px up to {longest} px"):
        family.encode_prompts([prompt_of(64, longest + 16, seed=0)])
