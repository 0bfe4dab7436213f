"""Hole families: functions that draw the pixels of a photograph that are to be repainted.

The ranges are those of PrefPaint (arXiv:2410.21966, section 4 and appendix A) for the families that it has.
Every function takes a numpy Generator, height and width in pixels, and returns bool [height, width], True = repaint.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

HoleFunction = Callable[[np.random.Generator, int, int], np.ndarray]


def boundary_square(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Keeps a rectangle of the image's shape and 15-25 % of its area, anywhere, and repaints the rest."""
    share = np.sqrt(rng.uniform(0.15, 0.25))
    kept_height, kept_width = round(height * share), round(width * share)
    left, top = rng.integers(0, (width - kept_width + 1, height - kept_height + 1))
    mask = np.ones((height, width), dtype=bool)
    mask[top : top + kept_height, left : left + kept_width] = False
    return mask


def boundary_band(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Keeps a full-height band of 35-40 % of the width, anywhere, and repaints the rest."""
    kept = round(width * rng.uniform(0.35, 0.40))
    left = rng.integers(0, width - kept + 1)
    mask = np.ones((height, width), dtype=bool)
    mask[:, left : left + kept] = False
    return mask


def box(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Repaints one rectangle with sides of 25-50 % of the image's sides."""
    rows, columns = (round(side) for side in rng.uniform(0.25, 0.50, size=2) * (height, width))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def brush(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Repaints one to three curved strokes, 8-18 % of the shorter side wide."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 4)):
        radius = min(height, width) * rng.uniform(0.04, 0.09)
        point = rng.uniform(0.15, 0.85, size=2) * (width, height)
        heading = rng.uniform(0, 2 * np.pi)
        for _ in range(rng.integers(12, 30)):
            x, y = point
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
            heading += rng.normal(0, 0.35)
            moved = point + radius * 0.8 * np.array([np.cos(heading), np.sin(heading)])
            point = np.clip(moved, 0, (width - 1, height - 1))
    return np.asarray(canvas) > 127


def warp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Repaints the pixels that a second camera does not see, one of a 3x3 grid (yaw +-0.3, pitch +-0.15 rad).

    The depth is simulated as blobs in front of a slanted plane, so the original photograph
    stays the ground truth of the hole. `disocclusion` takes any depth map.
    """
    while True:
        depth = _simulated_depth(rng, height, width)
        yaw, pitch = rng.choice([-0.3, 0.0, 0.3]), rng.choice([-0.15, 0.0, 0.15])
        mask = disocclusion(depth, yaw=yaw, pitch=pitch)
        if 0.05 <= mask.mean() <= 0.6:
            return mask


def _simulated_depth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / np.reshape((height, width), (2, 1, 1)) - 0.5
    slope_x, slope_y = rng.uniform(-0.3, 0.3), rng.uniform(-0.6, 0.0)
    depth = 2.0 + slope_x * x + slope_y * y
    for _ in range(rng.integers(1, 5)):
        centre_x, centre_y = rng.uniform(-0.4, 0.4, size=2)
        radius_x, radius_y = rng.uniform(0.08, 0.3, size=2)
        inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1
        depth = np.where(inside, np.minimum(depth, rng.uniform(0.9, 1.6)), depth)
    return depth


def disocclusion(depth: np.ndarray, *, yaw: float, pitch: float, focal: float = 1.0) -> np.ndarray:
    """Returns the pixels of this view that a camera orbiting the scene does not see.

    Args:
        depth: [H, W], positive, in any unit.
        yaw, pitch: angles of the orbit about the point at median depth, in radians.
        focal: focal length in units of the image's width.

    Returns bool [H, W]. A pixel is True if the other camera's point-wise z-buffer holds a point nearer
    than the pixel's own (5 % tolerance), or if the pixel's point lies outside the other view.
    """
    height, width = depth.shape
    v, u = np.mgrid[0:height, 0:width].astype(float)
    points = np.stack(
        [(u - width / 2) / (focal * width) * depth, (v - height / 2) / (focal * width) * depth, depth], -1
    )
    pivot = np.array([0.0, 0.0, np.median(depth)])
    turn_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    x, y, z = np.moveaxis((points - pivot) @ (turn_x @ turn_y).T + pivot, -1, 0)
    column = np.round(x / z * focal * width + width / 2).astype(int)
    row = np.round(y / z * focal * width + height / 2).astype(int)
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 0)
    nearest = np.full((height, width), np.inf)
    np.minimum.at(nearest, (row[is_inside], column[is_inside]), z[is_inside])
    hidden = np.ones((height, width), dtype=bool)
    hidden[is_inside] = z[is_inside] > nearest[row[is_inside], column[is_inside]] * 1.05
    return hidden


FAMILIES: dict[str, HoleFunction] = {
    function.__name__: function for function in (boundary_square, boundary_band, box, brush, warp)
}
"""All hole families by name. A new family is one function and its entry here: configurations, the training of the
built-in model and tests take the names from this table."""


def draw_hole(family: str, rng: np.random.Generator, height: int, width: int | None = None) -> np.ndarray:
    """Draws a hole of the named family that covers at least 2 % and leaves at least 2 % known; by default a square."""
    while True:
        mask = FAMILIES[family](rng, height, height if width is None else width)
        if 0.02 <= mask.mean() <= 0.98:
            return mask
