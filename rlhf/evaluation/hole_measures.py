"""Measures of a filled hole without a network: its look, and its distance from the original."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from rlhf.data.likeness import likeness, sharpness

SSIM_WINDOW_PX = 7
LUMINANCE = (0.299, 0.587, 0.114)
LOOKS = ("brightness", "saturation", "contrast", "sharpness", "seam_energy")
"""Names of the figures of `measure_looks`."""
FIDELITY = ("psnr_db", "ssim", "psnr_seam_db", "ssim_seam", "seam", "likeness")
"""Names of the figures of `measure_fidelity`."""
BAND_SHARE = 1 / 16
"""Reach of the seam's band to either side of the border, as a share of the image's shorter side."""


def measure_looks(images: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the figures of LOOKS, float64 [B] each; images [B, 3, H, W] in [-1, 1], masks [B, 1, H, W].

    Inside the hole, `brightness` is the mean luminance and `saturation` the mean chroma (largest minus smallest of red,
    green and blue), both 0 to 1; `contrast` is the standard deviation of the luminance and `sharpness` its mean
    absolute Laplacian. `seam_energy` is the mean absolute difference of neighbours on either side of the hole's border,
    in levels of 255.
    """
    unit = ((images + 1) / 2).double()
    hole = (masks > 0.5).double()
    luminance = (unit * unit.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    brightness = _mean(luminance, hole)
    return {
        "brightness": brightness,
        "saturation": _mean(unit.amax(1, keepdim=True) - unit.amin(1, keepdim=True), hole),
        "contrast": _mean((luminance - brightness.view(-1, 1, 1, 1)).square(), hole).sqrt(),
        "sharpness": sharpness(images, masks).double(),
        "seam_energy": 255 * _over_border(lambda dim: unit.diff(dim=dim).abs(), hole),
    }


def measure_fidelity(images: torch.Tensor, originals: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the figures of FIDELITY, float64 [B] each: PSNR and SSIM in the hole and in `seam_band`, and `seam`.

    `seam` is the mean absolute difference between the jumps of image and original over the hole's border, in levels of
    255; `likeness` is that of rlhf/data/likeness.py. Known pixels of the band have no error unless a contestant changed
    them. PSNR is NaN if the hole equals the original's, SSIM if the image is smaller than its window.
    """
    hole, band = (masks > 0.5).double(), seam_band(masks).double()
    error = (255 * ((images - originals) / 2).double()).square()
    seam = 255 * _over_border(lambda dim: ((images - originals) / 2).double().diff(dim=dim).abs(), hole)
    levels = [(255 * (part + 1) / 2).permute(0, 2, 3, 1).numpy() for part in (images, originals)]
    similar = torch.from_numpy(np.stack([_similarity(*pair) for pair in zip(*levels, strict=True)])).permute(0, 3, 1, 2)
    return {
        "psnr_db": _psnr_db(_mean(error, hole)),
        "ssim": _mean(similar, hole),
        "psnr_seam_db": _psnr_db(_mean(error, band)),
        "ssim_seam": _mean(similar, band),
        "seam": seam,
        "likeness": likeness(images, originals, masks).overall.double(),
    }


def seam_band(masks: torch.Tensor) -> torch.Tensor:
    """Returns the known and filled pixels near the hole's border, as float [B, 1, H, W] of 0 and 1.

    Near means within BAND_SHARE of the shorter side, at least 2 pixels.
    """
    hole = (masks > 0.5).float()
    reach = max(2, round(BAND_SHARE * min(masks.shape[-2:])))
    near = [torch.nn.functional.max_pool2d(part, 2 * reach + 1, stride=1, padding=reach) for part in (hole, 1 - hole)]
    return near[0] * near[1]


def _psnr_db(error: torch.Tensor) -> torch.Tensor:
    return torch.where(error > 0, 10 * (255**2 / error).log10(), torch.nan)


def _similarity(image: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Returns structural similarity by pixel and channel [H, W, 3] of images [H, W, 3], 0 to 255."""
    from skimage.metrics import structural_similarity

    if min(image.shape[:2]) < SSIM_WINDOW_PX:
        return np.full(image.shape, np.nan)
    options = {"win_size": SSIM_WINDOW_PX, "channel_axis": 2, "data_range": 255.0, "full": True}
    return structural_similarity(image, original, **options)[1]


def pair_distances(images: torch.Tensor, others: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns mean absolute differences in the hole, levels of 255, float64 [B]; shapes as in `measure_looks`."""
    return _mean((images - others).abs().double() * 127.5, (masks > 0.5).double())


def measure_diversity(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the mean `pair_distances` of a prompt's samples, float64 [P]; NaN for one sample.

    Shapes: images [P, S, 3, H, W], masks [P, 1, H, W].
    """
    samples = images.shape[1]
    pairs = [pair_distances(images[:, i], images[:, j], masks) for i in range(samples) for j in range(i)]
    return torch.stack(pairs).mean(0) if pairs else torch.full((len(images),), torch.nan, dtype=torch.float64)


def _mean(values: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Returns means [B] over the hole's pixels and the channels."""
    return (values.mean(1, keepdim=True) * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))


def _over_border(steps: Callable[[int], torch.Tensor], hole: torch.Tensor) -> torch.Tensor:
    """Returns the mean of `steps(dim)`, differences of neighbours along a dimension, over the hole's border."""
    borders = {dim: hole.diff(dim=dim).abs() for dim in (-1, -2)}
    totals = [(steps(dim).mean(1, keepdim=True) * border).sum((1, 2, 3)) for dim, border in borders.items()]
    counts = [border.sum((1, 2, 3)) for border in borders.values()]
    return (totals[0] + totals[1]) / (counts[0] + counts[1])


def to_arrays(columns: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Returns the columns on the CPU as float64."""
    return {name: column.detach().cpu().double().numpy() for name, column in columns.items()}
