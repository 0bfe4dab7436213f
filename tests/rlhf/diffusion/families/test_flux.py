from dataclasses import replace

import pytest
import torch
from family_painting import prompt_of
from small_families import CHANNELS, small_fill_pipeline, small_flux_inpaint_pipeline

from rlhf.diffusion.families.blending import hole_cells
from rlhf.diffusion.families.flux import FluxBlend, FluxFill
from rlhf.errors import UserError


def test_known_latents_do_not_depend_on_what_lay_in_the_hole() -> None:
    family, prompt = FluxBlend(small_flux_inpaint_pipeline()), prompt_of(64, 64, seed=3)
    other = replace(prompt, image=torch.where(prompt.mask > 0.5, -prompt.image, prompt.image))
    assert torch.equal(family.encode_prompts([prompt])[0], family.encode_prompts([other])[0])


def test_a_hole_smaller_than_a_cell_does_not_vanish() -> None:
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, 0, 3, 3] = 1
    mask[1, 0, 16:40] = 1
    cells = hole_cells(mask, (8, 8))
    assert cells[0].sum() == 1
    assert cells[0, 0, 0, 0] == 1
    assert torch.equal(cells[1], torch.nn.functional.interpolate(mask[1:], size=(8, 8))[0])


def test_a_size_that_does_not_fill_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="72x64 px: this model paints multiples of 16 px"):
        FluxFill(small_fill_pipeline()).encode_prompts([prompt_of(72, 64, seed=0)])


@torch.no_grad()
def test_a_network_that_is_told_guidance_depends_on_it_and_others_do_not() -> None:
    latents, text = torch.randn(1, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0)), "a cat"
    for is_told in (True, False):
        outputs = []
        for guidance in (1.0, 30.0):
            family = FluxFill(small_fill_pipeline(guidance_embeds=is_told), told=guidance)
            condition = family.join_condition(torch.ones(1, 1, 8, 8), latents)
            time = torch.tensor([500.0])
            outputs.append(family.predict(family.network, latents, time, condition, family.embed(text), "fp32"))
        assert torch.equal(*outputs) is not is_told
