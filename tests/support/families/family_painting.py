"""An image painted by a family's verbs, and the same by the pipeline's own class."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint
from family_cases import FamilyCase
from PIL import Image

from rlhf.data.prompts import Prompt
from rlhf.diffusion.denoising import finish_known
from rlhf.diffusion.families.blending import extend_into_hole, known_picture
from rlhf.diffusion.families.family import ModelFamily, cells_of
from rlhf.diffusion.policy import Policy, TrueGuidance
from rlhf.diffusion.rollout import Denoiser
from rlhf.diffusion.trajectories import RolloutPlan

SIZES = [(64, 64), (64, 96), (96, 64), (48, 80), (80, 48), (112, 64), (16, 32), (128, 48), (64, 128), (96, 96)]
"""Widths and heights in pixels."""


def prompt_of(width: int, height: int, seed: int, *, is_soft: bool = False) -> Prompt:
    """A smooth random picture with a hole of random pixels, so that each of a cell's mask pixels counts.

    A soft mask has values between 0 and 1.
    """
    rng = np.random.default_rng(seed)
    image = Image.fromarray((rng.random((3, 4, 3)) * 255).astype(np.uint8)).resize((width, height))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    share, drawn = rng.uniform(0.2, 0.8), torch.from_numpy(rng.random((1, height, width))).float()
    mask = drawn**2 if is_soft else (drawn < share).float()
    facts = {"photograph": f"{seed}.png", "source": "drawn", "hole": "pixels", "split": "train"}
    return Prompt(prompt_id=f"p{seed}", **facts, image=pixels, mask=mask)


@torch.no_grad()
def paint(policy: Policy, prompt: Prompt, noise: torch.Tensor, text: str, steps: int) -> torch.Tensor:
    """Finished latents by a rollout's own steps, without noise: [1, C, h, w]."""
    family = policy.family
    condition, _ = family.encode_prompts([prompt])
    plan = RolloutPlan(num_inference_steps=steps, eta=0.0, stochastic_steps=frozenset())
    denoiser = Denoiser(policy, plan, cells_of(condition), policy.embed([replace(prompt, caption=text)]))
    latents = noise
    for step in range(steps):
        drawn = denoiser.step(latents, step, condition, 0.0).mean
        latents = denoiser.keep_known(drawn, condition, noise, step)
    return finish_known(latents, family.known_latents(condition))


def policy_of(family: ModelFamily, guidance: TrueGuidance | None = None) -> Policy:
    """A policy that samples with the family's own network, frozen."""
    for part in family.pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return Policy(
        family=family,
        text=family.embed(""),
        device=torch.device("cpu"),
        precision="fp32",
        name="small",
        guidance=guidance,
    )


@torch.no_grad()
def noise_for(family: ModelFamily, prompt: Prompt, seed: int) -> torch.Tensor:
    """The initial noise [1, C, h, w] that a pipeline's class draws from a generator of this seed."""
    shape = family.latent_shape(*cells_of(family.encode_prompts([prompt])[0]))
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def paint_by_class(
    case: FamilyCase, pipeline: Any, prompt: Prompt, text: str, steps: int, seed: int, **further: object
) -> torch.Tensor:
    """What the pipeline's own class paints on that noise, with the image that the family encodes.

    Images [1, 3, H, W] from 0 to 1, or finished latents where the class decodes wrongly.
    """
    known, family = prompt.image[None], case.wrap(pipeline)
    if case.scheduler is not None:
        pipeline = type(pipeline)(**pipeline.components | {"scheduler": case.scheduler()})
        pipeline.set_progress_bar_config(disable=True)
    if family.known_latents(torch.zeros(1, 2, 1, 1)) is not None:
        known = extend_into_hole(known, prompt.mask[None])
    height, width = prompt.mask.shape[-2:]
    image = Image.fromarray(known_picture(prompt).permute(1, 2, 0).numpy()) if family.reads_picture else known / 2 + 0.5
    with pytest.MonkeyPatch.context() as patch:
        # This class scales every picture to a megapixel, whatever size it is asked for.
        patch.setattr(
            pipeline_qwenimage_edit_inpaint, "calculate_dimensions", lambda area, ratio: (width, height, None)
        )
        painted: torch.Tensor = pipeline(
            prompt=text,
            image=image,
            mask_image=prompt.mask[None],
            width=width,
            height=height,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt" if case.is_decoded else "latent",
            **{"strength": 1.0} | case.call | further,
        ).images
    return painted


class EncodedByMode:
    """A VAE's encoder without the randomness of its posterior: the classes draw a sample, families take the mode."""

    def __init__(self, vae: Any) -> None:
        self._encode = vae.encode

    def __call__(self, images: torch.Tensor) -> "EncodedByMode":
        """The posterior, as far as families and classes read it."""
        self.latents = self._encode(images).latent_dist.mode()
        self.latent_dist = self
        return self

    def mode(self) -> torch.Tensor:
        """The latents that are most likely."""
        return self.latents

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """The same, and nothing drawn."""
        return self.latents
