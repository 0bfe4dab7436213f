"""What is measured of a filled hole, image by image, without a network: how it looks, how near the original it is."""

from collections.abc import Mapping

import numpy as np
import torch

from rlhf.data.gold_judge import sharpness

SSIM_WINDOW_PX = 7
LUMINANCE = (0.299, 0.587, 0.114)
LOOKS = ("brightness", "saturation", "contrast", "sharpness", "seam_energy")
"""What `measure_looks` returns."""
FIDELITY = ("psnr_db", "ssim", "psnr_seam_db", "ssim_seam", "seam")
"""What `measure_fidelity` returns."""
BAND_SHARE = 1 / 16
"""Of an image's shorter side: how far the seam's band reaches to either side of the border."""


def measure_looks(images: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
    """By LOOKS, each float64 [B]; images [B, 3, H, W] in [-1, 1], masks [B, 1, H, W].

    Inside the hole: mean luminance and mean chroma (largest less smallest of red, green and blue), 0 to 1; standard
    deviation of the luminance; mean absolute Laplacian of it. `seam_energy` is the mean absolute difference of
    neighbours of which one is in the hole, in levels of 255.
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
    """By FIDELITY, each float64 [B]: PSNR and SSIM in the hole and across the seam, and how far jumps there differ.

    Across the seam is in `seam_band`, whose known pixels have no error but where somebody changed them. `seam` is the
    mean absolute difference between the jumps of image and original over the hole's border, in levels of 255. PSNR is
    NaN where the hole is the original's, SSIM where the image is smaller than its window.
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
    }


def seam_band(masks: torch.Tensor) -> torch.Tensor:
    """Pixels near the hole's border, known ones and filled ones, as float [B, 1, H, W] of 0 and 1.

    No farther than BAND_SHARE of the shorter side, at least 2 pixels, from one of the other kind.
    """
    hole = (masks > 0.5).float()
    reach = max(2, round(BAND_SHARE * min(masks.shape[-2:])))
    near = [torch.nn.functional.max_pool2d(part, 2 * reach + 1, stride=1, padding=reach) for part in (hole, 1 - hole)]
    return near[0] * near[1]


def _psnr_db(error: torch.Tensor) -> torch.Tensor:
    return torch.where(error > 0, 10 * (255**2 / error).log10(), torch.nan)


def _similarity(image: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Structural similarity by pixel and channel, [H, W, 3], as are the images, of 0 to 255."""
    from skimage.metrics import structural_similarity

    if min(image.shape[:2]) < SSIM_WINDOW_PX:
        return np.full(image.shape, np.nan)
    options = {"win_size": SSIM_WINDOW_PX, "channel_axis": 2, "data_range": 255.0, "full": True}
    return structural_similarity(image, original, **options)[1]


def pair_distances(images: torch.Tensor, others: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference inside the hole, in levels of 255, float64 [B]; shapes as in `measure_looks`."""
    return _mean((images - others).abs().double() * 127.5, (masks > 0.5).double())


def measure_diversity(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean `pair_distances` of a prompt's samples, float64 [P]; images [P, S, 3, H, W], masks [P, 1, H, W].

    NaN where there is one sample.
    """
    samples = images.shape[1]
    pairs = [pair_distances(images[:, i], images[:, j], masks) for i in range(samples) for j in range(i)]
    return torch.stack(pairs).mean(0) if pairs else torch.full((len(images),), torch.nan, dtype=torch.float64)


def _mean(values: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Over the hole's pixels and the channels: [B]."""
    return (values.mean(1, keepdim=True) * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))


def _over_border(steps, hole: torch.Tensor) -> torch.Tensor:  # noqa: ANN001
    """Mean of `steps(dim)`, differences of neighbours along a dimension, over those of which one is in the hole."""
    borders = {dim: hole.diff(dim=dim).abs() for dim in (-1, -2)}
    total = sum((steps(dim).mean(1, keepdim=True) * border).sum((1, 2, 3)) for dim, border in borders.items())
    return total / sum(border.sum((1, 2, 3)) for border in borders.values())


def to_arrays(columns: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The same on the CPU as float64."""
    return {name: column.detach().cpu().double().numpy() for name, column in columns.items()}
