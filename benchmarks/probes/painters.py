"""Fills by the built-in models and by classical methods, with the marks that the simulated annotators are to give.

The probes that ship were fitted to fills of earlier weights of these models.
"""

import torch
from diffusers import FluxFillPipeline, StableDiffusionInpaintPipeline

from benchmarks.base_model.fills import fill_classical, fill_transformer, fill_unet
from benchmarks.probes.fills import Marks, Place
from rlhf.diffusion.families.open_family import resolve_model

BATCH = 50

Fills = list[tuple[int, str, torch.Tensor, Marks]]
"""Number of the place, name, filled picture before compositing, marks."""


@torch.no_grad()
def paint(places: list[Place], seed: int) -> Fills:
    """Fills each place by the built-in UNet, and some by each of the other painters."""
    images, masks = (torch.stack([getattr(place, name) for place in places]) for name in ("image", "mask"))
    found: Fills = []
    unet = StableDiffusionInpaintPipeline.from_pretrained(
        resolve_model("tiny-sd"), torch_dtype=torch.float32, safety_checker=None
    )
    for steps in (5, 10):
        for start in range(0, len(places), BATCH):
            part = slice(start, start + BATCH)
            filled = fill_unet(unet, images[part], masks[part], steps, seed + start + steps)
            found += [(start + i, "model", fill, (0.35, 0.2, 0.25)) for i, fill in enumerate(filled)]
            shares = torch.rand(len(filled), generator=torch.Generator().manual_seed(seed + start)).tolist()
            for i, (fill, share) in enumerate(zip(filled, shares, strict=True)):
                blend = share * images[start + i] + (1 - share) * fill
                kept = share**1.5
                found.append(
                    (start + i, "model blend", blend, (0.35 + 0.6 * kept, 0.2 + 0.7 * kept, 0.25 + 0.68 * kept))
                )
    found += _by_the_transformer(images, masks, seed)
    for name, step in (("telea", 2), ("navier-stokes", 3), ("biharmonic", 8)):
        chosen = list(range(0, len(places), step))
        filled = fill_classical(name, images[chosen], masks[chosen])
        found += [(i, name, fill, (0.35, 0.07, 0.19)) for i, fill in zip(chosen, filled, strict=True)]
    return found


def _by_the_transformer(images: torch.Tensor, masks: torch.Tensor, seed: int) -> Fills:
    """Returns round trips of the VAE, which are nearly the originals, and fills of the transformer."""
    pipeline = FluxFillPipeline.from_pretrained(resolve_model("tiny"), torch_dtype=torch.float32)
    chosen = list(range(0, len(images), 3))
    found: Fills = []
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        filled = fill_transformer(pipeline, images[part], masks[part], 10, seed + start)
        trip = pipeline.vae.decode(pipeline.vae.encode(images[part]).latent_dist.mean).sample
        found += [(i, "transformer", fill, (0.35, 0.2, 0.25)) for i, fill in zip(part, filled, strict=True)]
        found += [(i, "round trip", fill, (0.97, 0.93, 0.94)) for i, fill in zip(part, trip, strict=True)]
    return found
