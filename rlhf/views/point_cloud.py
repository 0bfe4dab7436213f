"""Coloured point clouds: fused from views with depth, written as PLY, compared with true surfaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write
from rlhf.views.cameras import pixel_grid, unproject
from rlhf.views.warping import View

VERTEX = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")],
)
"""One point of a PLY file; the names are those that MeshLab, CloudCompare, Blender and Open3D look for."""
PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


@dataclass(frozen=True, kw_only=True, eq=False)
class PointCloud:
    """Points with colour."""

    points: np.ndarray
    """float64 [N, 3], in the world: x to the right, y down, z forward."""
    colours: np.ndarray
    """uint8 [N, 3]."""


def fuse(views: Sequence[View], *, voxel: float | None = None) -> PointCloud:
    """All known pixels of all views as one cloud; with `voxel`, a length in the world's unit, thinned."""
    points, colours = [], []
    for view in views:
        u, v = pixel_grid(view.camera)
        points.append(unproject(view.camera, u[view.known], v[view.known], view.depth[view.known]))
        colours.append(view.rgb[view.known])
    cloud = PointCloud(points=np.concatenate(points), colours=np.concatenate(colours))
    return cloud if voxel is None else thin(cloud, voxel)


def thin(cloud: PointCloud, voxel: float) -> PointCloud:
    """The mean point and colour of every occupied cube of side `voxel`."""
    cubes = np.floor(cloud.points / voxel).astype(np.int64)
    _, cube, counts = np.unique(cubes, axis=0, return_inverse=True, return_counts=True)
    cube = cube.reshape(-1)
    columns = np.concatenate([cloud.points, cloud.colours], axis=1)
    means = np.stack([np.bincount(cube, column) / counts for column in columns.T], axis=1)
    return PointCloud(points=means[:, :3], colours=(means[:, 3:] + 0.5).astype(np.uint8))


def write_ply(cloud: PointCloud, path: Path, *, ascii_text: bool = False) -> None:
    """Write a PLY file (1.0, little-endian binary or text) with y up and z towards the viewer, as viewers have it."""
    rows = np.empty(len(cloud.points), VERTEX)
    for name, values in zip("xyz", (cloud.points * (1, -1, -1)).T, strict=True):
        rows[name] = values
    for name, values in zip(("red", "green", "blue"), cloud.colours.T, strict=True):
        rows[name] = values
    properties = [f"property {PLY_TYPES[VERTEX[name].str]} {name}" for name in VERTEX.names or ()]
    kind = "ascii" if ascii_text else "binary_little_endian"
    lines = ["ply", f"format {kind} 1.0", f"element vertex {len(rows)}", *properties, "end_header"]
    header = ("\n".join(lines) + "\n").encode("ascii")
    if ascii_text:
        body = "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in rows.tolist()).encode("ascii")
    else:
        body = rows.tobytes()
    atomic_write(path, lambda temporary: temporary.write_bytes(header + body))


def read_ply(path: Path) -> PointCloud:
    """A file that `write_ply` wrote; UserError where it is of another layout."""
    header, marker, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode("ascii", "replace").split("\n")[:-1]
    expected = [f"property {PLY_TYPES[VERTEX[name].str]} {name}" for name in VERTEX.names or ()]
    if not marker or lines[:1] != ["ply"] or lines[3:] != expected:
        raise UserError(f"{path}: not a PLY file of points with colour as this program writes them")
    count = int(lines[2].rpartition(" ")[2])
    if lines[1] == "format ascii 1.0":
        rows = np.array([tuple(map(float, line.split())) for line in body.decode("ascii").splitlines()], dtype=VERTEX)
    else:
        rows = np.frombuffer(body, VERTEX)
    if len(rows) != count:
        raise UserError(f"{path}: holds {len(rows)} points, its header says {count}; write it again")
    points = np.stack([rows[name].astype(float) for name in "xyz"], axis=1) * (1, -1, -1)
    return PointCloud(points=points, colours=np.stack([rows[name] for name in ("red", "green", "blue")], axis=1))


def completeness(points: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """Share of true surface points [M, 3] with a point of the cloud [N, 3] within `tolerance`.

    The recall of Knapitsch et al. 2017 (Tanks and Temples, section 4); NaN where there is no true point.
    """
    from scipy.spatial import cKDTree

    if not len(truth):
        return float("nan")
    if not len(points):
        return 0.0
    distance, _ = cKDTree(points).query(truth)
    return float((distance <= tolerance).mean())
