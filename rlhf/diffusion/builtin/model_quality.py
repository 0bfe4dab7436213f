"""How well a model reconstructs and fills photographs: figures for a model card."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity

from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.progress import progress_bar
from rlhf.reports.intervals import estimate_figure

BATCH = 32


def measure_quality(policy: Policy, prompts: list[Prompt], *, num_inference_steps: int, seed: int) -> dict[str, Any]:
    """PSNR of the VAE, and PSNR and SSIM of the fills inside the hole, against the originals.

    Deterministic DDIM, one sample per prompt. Intervals are clustered by photograph; PSNR in dB.
    """
    plan = RolloutPlan(num_inference_steps=num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    vae_psnr, hole_psnr, hole_ssim = [], [], []
    for start in progress_bar(range(0, len(prompts), BATCH), stage="quality"):
        batch = prompts[start : start + BATCH]
        originals = torch.stack([p.image for p in batch])
        filled = rollout(policy, batch, plan, sample_indices=[0], seed_key=(seed, "quality")).images
        reconstructed = policy.family.decode(policy.family.encode_images(originals)).cpu()
        vae_psnr += [psnr(a, b) for a, b in zip(reconstructed, originals, strict=True)]
        for image, prompt in zip(filled, batch, strict=True):
            hole = prompt.mask[0] > 0.5
            hole_psnr.append(psnr(image[:, hole], prompt.image[:, hole]))
            hole_ssim.append(_ssim(image, prompt.image, hole.numpy()))
    photographs = [p.photograph for p in prompts]
    columns = {"vae_psnr_db": vae_psnr, "hole_psnr_db": hole_psnr, "hole_ssim": hole_ssim}
    return {name: asdict(estimate_figure(np.array(values), photographs)) for name, values in columns.items()}


def psnr(image: torch.Tensor, original: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], of any equal shape."""
    error = ((image.clamp(-1, 1) - original) / 2).square().mean()
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def _ssim(image: torch.Tensor, original: torch.Tensor, hole: np.ndarray) -> float:
    """Structural similarity averaged over the hole's pixels."""
    a, b = (x.permute(1, 2, 0).numpy() for x in (image, original))
    _, similarity = structural_similarity(a, b, channel_axis=2, data_range=2.0, full=True)
    return float(similarity[hole].mean())
