"""The motorcycle of Middlebury (Scharstein et al. 2014): a photograph, its true disparity, and the true other view.

It comes inside scikit-image, at a quarter of its size. The left picture is warped to the right camera; what opens up
there is compared with what the right camera saw.
"""

from dataclasses import dataclass, replace

import numpy as np

from rlhf.views.cameras import Camera, pixel_grid, project, unproject
from rlhf.views.depth import disparity_to_depth, mend_depth
from rlhf.views.depth_filling import fill_depth
from rlhf.views.surfaces import sharpen_edges
from rlhf.views.warping import View, Warped, warp, whole_view

FOCAL_PX, CENTRE_PX = 994.978, (311.193, 254.877)
BASELINE_MM, OFFSET_PX = 193.001, 31.086
"""Calibration of the pair at the size that scikit-image has, by the docstring of `skimage.data.stereo_motorcycle`."""
SSIM_WINDOW_PX = 7
SPECK_PX = 8
"""Islands in holes that are dropped; as `rlhf novel-view` does."""
REGIONS = (6, 9)
"""Rows and columns of the grid whose cells a bootstrap draws."""
PARTS = ("hole", "behind", "outside", "seen")
"""The whole hole; what objects hid; what lay outside of the left picture; for scale, what was warped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StereoPair:
    """The left picture from the right camera, and the right picture."""

    warped: Warped
    truth: np.ndarray
    """uint8 [H, W, 3]."""
    parts: dict[str, np.ndarray]
    """bool [H, W] by the names of PARTS; what true disparity alone brings there is `seen`."""


def load_motorcycle(shrink: int = 1) -> StereoPair:
    """The pair with its sides divided by `shrink`: so is the baseline in pixels, and with it the width of holes.

    Pixels without true disparity are mended from the far side around them for the warp, so that what is merely unknown
    is no hole; they are not in `seen`. Edges are made steps, since scaling left values between two surfaces there.
    """
    from skimage.data import stereo_motorcycle
    from skimage.transform import downscale_local_mean

    left, right, disparity = stereo_motorcycle()
    if shrink > 1:
        left, right = (
            (downscale_local_mean(picture, (shrink, shrink, 1)) + 0.5).astype(np.uint8) for picture in (left, right)
        )
        disparity = disparity[shrink // 2 :: shrink, shrink // 2 :: shrink] / shrink
        left, right = (picture[: disparity.shape[0], : disparity.shape[1]] for picture in (left, right))
    depth = disparity_to_depth(
        disparity.astype(float), focal_px=FOCAL_PX / shrink, baseline=BASELINE_MM, offset_px=OFFSET_PX / shrink
    )
    source, camera = _cameras(disparity.shape[0], disparity.shape[1], shrink)
    measured = whole_view(source, left, depth)
    view = whole_view(source, left, sharpen_edges(mend_depth(depth, "motorcycle")))
    warped = warp([view], camera, speck_px=SPECK_PX)
    is_measured = ~warp([measured], camera).hole
    outside = warped.hole & _leaves(view, replace(warped, depth=fill_depth(warped)))
    parts = {
        "hole": warped.hole,
        "behind": warped.hole & ~outside,
        "outside": outside,
        "seen": is_measured & ~warped.hole,
    }
    return StereoPair(warped=warped, truth=right, parts=parts)


def _cameras(height: int, width: int, shrink: int) -> tuple[Camera, Camera]:
    across, down = ((place + 0.5) / shrink - 0.5 for place in CENTRE_PX)
    left = Camera(width_px=width, height_px=height, focal_px=FOCAL_PX / shrink, centre_px=(across, down))
    right = (across + OFFSET_PX / shrink, down)
    return left, replace(left, centre_px=right, position=np.array([BASELINE_MM, 0.0, 0.0]))


def _leaves(view: View, filled: Warped) -> np.ndarray:
    """Pixels of the new view, with depth everywhere, that lie outside of the old one."""
    u, v = pixel_grid(filled.camera)
    columns, rows, _ = project(view.camera, unproject(filled.camera, u, v, filled.depth))
    is_inside = (columns >= -0.5) & (columns < view.camera.width_px - 0.5)
    return ~(is_inside & (rows >= -0.5) & (rows < view.camera.height_px - 0.5))


def judge_against_truth(pair: StereoPair, filled: np.ndarray) -> dict[str, list[list[float]]]:
    """Of each part a row per region: pixels, sum of squared errors over pixels and channels, sum of SSIM.

    SSIM is Wang et al.'s (2004) with a window of SSIM_WINDOW_PX, averaged over channels, of the whole pictures; the
    sum takes its map inside the part, so windows at a hole's border look at known pixels too.
    """
    from skimage.metrics import structural_similarity

    error = np.square(filled.astype(float) - pair.truth).sum(axis=2)
    _, similarity = structural_similarity(
        filled, pair.truth, channel_axis=-1, win_size=SSIM_WINDOW_PX, data_range=255, full=True
    )
    ssim = similarity.mean(axis=2)
    region = _regions(error.shape)
    count = REGIONS[0] * REGIONS[1]
    rows = {}
    for name, part in pair.parts.items():
        sums = [np.bincount(region[part], w[part], minlength=count) for w in (np.ones_like(error), error, ssim)]
        rows[name] = np.stack(sums, axis=1).tolist()
    return rows


def _regions(shape: tuple[int, ...]) -> np.ndarray:
    """The number of the grid cell of every pixel."""
    row, column = (np.arange(side) * cells // side for side, cells in zip(shape, REGIONS, strict=True))
    return row[:, None] * REGIONS[1] + column


def psnr(rows: np.ndarray) -> float:
    """Decibel, of rows [N, >= 2] of pixels and summed squared errors over three channels; NaN without pixels."""
    pixels, error = rows[:, 0].sum(), rows[:, 1].sum()
    if pixels == 0:
        return float("nan")
    return float(10 * np.log10(255**2 * 3 * pixels / error)) if error > 0 else float("inf")
