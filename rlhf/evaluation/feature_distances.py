"""Distances in the features of networks: LPIPS of fill and original, FID and KID of sets. They need weights."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from rlhf.errors import UserError

PictureDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps images [B, 3, H, W] in [-1, 1] to distances [B, 1, H, W] from originals [P, 3, H, W], each of which belongs to
B / P consecutive images."""
Features = Callable[[torch.Tensor], np.ndarray]
"""Maps images [B, 3, H, W] in [-1, 1] to features [B, d]."""
BATCH = 64


def open_lpips(device: torch.device) -> PictureDistance:
    """Opens LPIPS with AlexNet (arXiv:1801.03924) as a map. Raises UserError if package or weights are missing.

    The weights must lie in torch.hub's folder; they are not downloaded.
    """
    if not find_spec("lpips") or not find_spec("torchvision"):
        raise UserError("its package is not installed: pip install 'prefpaint-ray[metrics]'")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("alexnet-*.pth")):
        raise UserError(f"no weights of AlexNet in {folder}: put torchvision's alexnet-owt-7be5be79.pth there")
    import lpips

    network = lpips.LPIPS(net="alex", spatial=True, verbose=False).to(device).eval().requires_grad_(False)

    def distance(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        each = originals.repeat_interleave(len(images) // len(originals), dim=0)
        found: torch.Tensor = network(images.to(device), each.to(device))
        return found.cpu()

    return distance


def open_features(path: str | None, device: torch.device) -> Features:
    """Opens a CLIP model's image embedding for FID and KID (arXiv:2203.06026). Raises UserError if it is missing."""
    if path is None:
        raise UserError("no weights are named: set evaluate.features to a CLIP model")
    from transformers import CLIPModel

    from rlhf.rewards.clip_model import clip_pixels, load_clip

    model = load_clip(CLIPModel, path, "FID, KID", device)
    size = model.config.vision_config.image_size

    @torch.no_grad()
    def describe(images: torch.Tensor) -> np.ndarray:
        """Returns the embeddings of images, float64 [B, d]."""
        parts = [
            model.visual_projection(model.vision_model(clip_pixels(part, size).to(device)).pooler_output)
            for part in images.split(BATCH)
        ]
        return torch.cat(parts).double().cpu().numpy()

    return describe


def measure_sets(
    features: Features, sets: Mapping[str, Sequence[torch.Tensor]], originals: Sequence[torch.Tensor]
) -> dict[str, dict[str, float]]:
    """Returns `fid` and `kid` of each set of images [3, H, W] against the originals, by the set's name."""
    true = _describe(features, originals)
    return {
        name: {"fid": frechet_distance(found, true), "kid": kernel_distance(found, true)}
        for name, found in ((name, _describe(features, images)) for name, images in sets.items())
    }


def _describe(features: Features, images: Sequence[torch.Tensor]) -> np.ndarray:
    """Returns the features [N, d] of images, size by size."""
    of_size: dict[torch.Size, list[torch.Tensor]] = {}
    for image in images:
        of_size.setdefault(image.shape, []).append(image)
    return np.concatenate([features(torch.stack(same)) for same in of_size.values()])


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns FID (arXiv:1706.08500) of features [N, d], [M, d]: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2).

    FID is biased upwards unless there are many more images than features.
    """
    means = first.mean(0) - second.mean(0)
    ours, theirs = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # The product of two covariances has real, non-negative eigenvalues up to rounding.
    root = np.sqrt(np.linalg.eigvals(ours @ theirs).real.clip(min=0)).sum()
    return float(means @ means + np.trace(ours) + np.trace(theirs) - 2 * root)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns KID (arXiv:1801.01401) of features [N, d], [M, d]: unbiased squared MMD, kernel (x'y / d + 1)^3."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the polynomial kernel of all pairs, [N, M]."""
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        """Returns the mean kernel of different rows."""
        gram = kernel(x, x)
        return float((gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())
