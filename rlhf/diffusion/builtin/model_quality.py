"""Measures how well a model reconstructs and fills photographs, for a model card."""

from dataclasses import dataclass

import numpy as np
import torch
from skimage.metrics import structural_similarity

from rlhf.data.buckets import batches_of_one_size
from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.progress import progress_bar
from rlhf.reports.intervals import Estimate, estimate_figure

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ModelQuality:
    """Likeness to the originals; intervals come from a bootstrap over photographs."""

    vae_psnr_db: Estimate
    """PSNR of whole images after encoding and decoding."""
    hole_psnr_db: Estimate
    """PSNR of the fills, inside the hole."""
    hole_ssim: Estimate
    """Structural similarity of the fills, inside the hole."""


def measure_quality(policy: Policy, prompts: list[Prompt], *, num_inference_steps: int, seed: int) -> ModelQuality:
    """Reconstructs and fills every prompt once, by deterministic steps, and compares with the originals."""
    plan = RolloutPlan(num_inference_steps=num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    vae_psnr, hole_psnr, hole_ssim = [], [], []
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    batches = batches_of_one_size(by_id, {name: prompt.size for name, prompt in by_id.items()}, BATCH)
    for names in progress_bar(batches, stage="quality"):
        batch = [by_id[name] for name in names]
        originals = torch.stack([p.image for p in batch])
        filled = rollout(policy, batch, plan, sample_indices=[0], seed_key=(seed, "quality")).images
        reconstructed = policy.family.decode(policy.family.encode_images(originals)).cpu()
        vae_psnr += [psnr(a, b) for a, b in zip(reconstructed, originals, strict=True)]
        for image, prompt in zip(filled, batch, strict=True):
            hole = prompt.mask[0] > 0.5
            hole_psnr.append(psnr(image[:, hole], prompt.image[:, hole]))
            hole_ssim.append(_ssim(image, prompt.image, hole.numpy()))
    photographs = [by_id[name].photograph for names in batches for name in names]
    return ModelQuality(
        vae_psnr_db=estimate_figure(np.array(vae_psnr), photographs),
        hole_psnr_db=estimate_figure(np.array(hole_psnr), photographs),
        hole_ssim=estimate_figure(np.array(hole_ssim), photographs),
    )


def psnr(image: torch.Tensor, original: torch.Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB of two images in [-1, 1] of the same shape."""
    error = ((image.clamp(-1, 1) - original) / 2).square().mean()
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def _ssim(image: torch.Tensor, original: torch.Tensor, hole: np.ndarray) -> float:
    """Returns the structural similarity, averaged over the hole's pixels."""
    a, b = (x.permute(1, 2, 0).numpy() for x in (image, original))
    _, similarity = structural_similarity(a, b, channel_axis=2, data_range=2.0, full=True)
    return float(similarity[hole].mean())
