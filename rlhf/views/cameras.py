"""Pinhole cameras: project world points to pixels, and pixels with depth to world points.

World and camera axes follow OpenCV: x to the right, y down, z forward. The centre of pixel (row v, column u) is exactly
(u, v). Depth is the camera's z in any unit of length, not the distance along the ray.
"""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera without distortion (Hartley and Zisserman, Multiple View Geometry, section 6.1)."""

    width_px: int
    height_px: int
    focal_px: float
    centre_px: tuple[float, float]
    """Column and row of the principal point."""
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    """[3, 3], rotation from world axes to camera axes."""
    position: np.ndarray = field(default_factory=lambda: np.zeros(3))
    """[3], position in the world."""

    def scaled(self, factor: float) -> "Camera":
        """Returns the camera with a picture `factor` times as wide and high, rounded to whole pixels."""
        width, height = max(1, round(factor * self.width_px)), max(1, round(factor * self.height_px))
        across, down = self.centre_px
        return replace(
            self,
            width_px=width,
            height_px=height,
            focal_px=self.focal_px * width / self.width_px,
            centre_px=((across + 0.5) * width / self.width_px - 0.5, (down + 0.5) * height / self.height_px - 0.5),
        )


def camera_at_origin(width_px: int, height_px: int, focal_px: float | None = None) -> Camera:
    """Returns a camera at the world's origin that looks along z, with its principal point in the picture's centre.

    The default focal length is the picture's width, which gives a field of view of 53 degrees.
    """
    return Camera(
        width_px=width_px,
        height_px=height_px,
        focal_px=float(width_px if focal_px is None else focal_px),
        centre_px=((width_px - 1) / 2, (height_px - 1) / 2),
    )


def turn(yaw: float, pitch: float, roll: float = 0.0) -> np.ndarray:
    """Returns the rotation [3, 3] of yaw about y, then pitch about x, then roll about z; angles in radians."""
    (sy, sp, sr), (cy, cp, cr) = np.sin((yaw, pitch, roll)), np.cos((yaw, pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def orbit(
    camera: Camera,
    pivot_depth: float,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Camera:
    """Rotates the camera around the point at `pivot_depth` on its axis, then shifts it along its new axes.

    Angles are in radians: yaw > 0 looks from the right, pitch > 0 from above, and roll > 0 tilts the picture clockwise.
    `shift` is in the unit of depth. Without a shift the pivot keeps its place in the picture.
    """
    pivot = camera.position + camera.rotation.T @ np.array([0.0, 0.0, pivot_depth])
    rotation = turn(yaw, pitch, roll) @ camera.rotation
    position = pivot + rotation.T @ (np.array(shift, dtype=float) - np.array([0.0, 0.0, pivot_depth]))
    return replace(camera, rotation=rotation, position=position)


def pixel_grid(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Returns column and row of every pixel, float64 [H, W] each."""
    v, u = np.mgrid[0 : camera.height_px, 0 : camera.width_px].astype(float)
    return u, v


def unproject(camera: Camera, u: np.ndarray, v: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Returns the world points, float64 [..., 3], of pixels in columns `u` and rows `v` at `depth`, all [...]."""
    x, y = ((w - c) / camera.focal_px * depth for w, c in zip((u, v), camera.centre_px, strict=True))
    return np.stack([x, y, depth], axis=-1) @ camera.rotation + camera.position


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projects points [..., 3]; returns column, row and depth, float64 [...]. Column and row are NaN if depth <= 0."""
    x, y, z = np.moveaxis((points - camera.position) @ camera.rotation.T, -1, 0)
    ahead = np.where(z > 0, z, np.nan)
    return x / ahead * camera.focal_px + camera.centre_px[0], y / ahead * camera.focal_px + camera.centre_px[1], z
