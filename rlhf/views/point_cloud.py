"""Coloured point clouds: fused from views with depth, written as PLY, compared with true surfaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf.storage.atomic_files import atomic_write
from rlhf.views.cameras import pixel_grid, unproject
from rlhf.views.warping import View

VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")],
)
"""One point of a PLY file, with the property names that MeshLab, CloudCompare, Blender and Open3D expect."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointCloud:
    """Points with one colour each."""

    points: np.ndarray
    """Positions, float64 [N, 3], in the world frame: x to the right, y down, z forward."""
    colours: np.ndarray
    """Colours, uint8 [N, 3]."""


def fuse(views: Sequence[View], *, voxel: float | None = None) -> PointCloud:
    """Returns all known pixels of all views as one cloud, thinned to cubes of side `voxel` (world units) if given."""
    points, colours = [], []
    for view in views:
        u, v = pixel_grid(view.camera)
        points.append(unproject(view.camera, u[view.known], v[view.known], view.depth[view.known]))
        colours.append(view.rgb[view.known])
    cloud = PointCloud(points=np.concatenate(points), colours=np.concatenate(colours))
    return cloud if voxel is None else thin(cloud, voxel)


def thin(cloud: PointCloud, voxel: float) -> PointCloud:
    """Returns the mean point and mean colour of every occupied cube of side `voxel` (world units)."""
    cubes = np.floor(cloud.points / voxel).astype(np.int64)
    _, cube, counts = np.unique(cubes, axis=0, return_inverse=True, return_counts=True)
    cube = cube.reshape(-1)
    columns = np.concatenate([cloud.points, cloud.colours], axis=1)
    means = np.stack([np.bincount(cube, column) / counts for column in columns.T], axis=1)
    return PointCloud(points=means[:, :3], colours=(means[:, 3:] + 0.5).astype(np.uint8))


def write_ply(cloud: PointCloud, path: Path) -> None:
    """Writes a binary PLY file with y up and z towards the viewer, as viewers expect."""
    columns = [*(cloud.points * (1, -1, -1)).T, *cloud.colours.T]
    rows = np.empty(len(cloud.points), VERTEX)
    for name, values in zip(VERTEX.names or (), columns, strict=True):
        rows[name] = values
    types = {np.dtype("<f4"): "float", np.dtype("u1"): "uchar"}
    properties = [f"property {types[VERTEX[name]]} {name}" for name in VERTEX.names or ()]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *properties, "end_header", ""]
    atomic_write(path, lambda temporary: temporary.write_bytes("\n".join(lines).encode() + rows.tobytes()))


def completeness(points: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """Returns the share of true surface points [M, 3] that have a point of the cloud [N, 3] within `tolerance`.

    This is the recall of Knapitsch et al. 2017 (Tanks and Temples, section 4); NaN if there is no true point.
    """
    from scipy.spatial import cKDTree

    if not len(truth):
        return float("nan")
    if not len(points):
        return 0.0
    distance, _ = cKDTree(points).query(truth)
    return float((distance <= tolerance).mean())
