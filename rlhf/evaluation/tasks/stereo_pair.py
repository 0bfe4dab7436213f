"""The Middlebury motorcycle (Scharstein et al. 2014): a photograph, its true disparity, and the true other view.

scikit-image includes the pair at a quarter of its size. The left picture is warped to the right camera, and the holes
that open there are compared with the right picture.
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
"""Calibration of the pair at scikit-image's size, from the docstring of `skimage.data.stereo_motorcycle`."""
SSIM_WINDOW_PX = 7
SPECK_PX = 8
"""Largest size of islands in holes that are dropped, as in `rlhf novel-view`."""
REGIONS = (6, 9)
"""Rows and columns of the grid whose cells are the units of the intervals."""
PARTS = ("hole", "behind", "outside", "seen")
"""The whole hole; its part behind objects; its part outside the left picture; and, for scale, the warped pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StereoPair:
    """Left picture warped to the right camera, and the true right picture."""

    warped: Warped
    truth: np.ndarray
    """uint8 [H, W, 3]."""
    parts: dict[str, np.ndarray]
    """Masks bool [H, W] by the names of PARTS; `seen` are the pixels that true disparity reaches."""


def load_motorcycle(shrink: int = 1) -> StereoPair:
    """Loads the pair at 1/`shrink` of its size; its baseline in pixels, and so the width of holes, shrinks alike.

    Pixels without true disparity get the depth of the far side around them, so that they open no holes; they are not in
    `seen`. Edges are sharpened, since scaling leaves values between two surfaces there.
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
    """Returns the pixels of the new view, which has depth everywhere, that lie outside the old view."""
    u, v = pixel_grid(filled.camera)
    columns, rows, _ = project(view.camera, unproject(filled.camera, u, v, filled.depth))
    is_inside = (columns >= -0.5) & (columns < view.camera.width_px - 0.5)
    return ~(is_inside & (rows >= -0.5) & (rows < view.camera.height_px - 0.5))


def judge_against_truth(pair: StereoPair, filled: np.ndarray) -> dict[str, list[list[float]]]:
    """Returns, for each part, a row per region: pixels, sum of squared errors over pixels and channels, sum of SSIM.

    SSIM (Wang et al. 2004) has a window of SSIM_WINDOW_PX and is averaged over channels. Its map is computed for the
    whole pictures and summed inside the part, so windows at a hole's border include known pixels.
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
    """Returns the number of the grid cell of every pixel."""
    row, column = (np.arange(side) * cells // side for side, cells in zip(shape, REGIONS, strict=True))
    return row[:, None] * REGIONS[1] + column


def psnr(rows: np.ndarray) -> float:
    """Returns PSNR in dB from rows [N, >= 2] of pixels and squared errors, summed over channels; NaN for no pixel."""
    pixels, error = rows[:, 0].sum(), rows[:, 1].sum()
    if pixels == 0:
        return float("nan")
    return float(10 * np.log10(255**2 * 3 * pixels / error)) if error > 0 else float("inf")
