"""Makes new views of one photograph with depth: warps, fills, animates along a path, and fuses a point cloud.

The first key view is the requested one. Every further key view is warped from the photograph and the earlier key views,
so a painted hole looks the same from everywhere. `Fill` paints the colours of a hole, and `fill_depth` its depth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import save_png
from rlhf.views.animation import write_gif, write_mp4
from rlhf.views.cameras import Camera, camera_at_origin, orbit, pixel_grid, unproject
from rlhf.views.depth_filling import fill_depth, fill_with_nearest_background, hide_near_side
from rlhf.views.point_cloud import PointCloud, fuse, write_ply
from rlhf.views.warping import View, Warped, is_seen_through, warp, whole_view

if TYPE_CHECKING:
    from rlhf.diffusion.policy import Policy

SCHEMA_VERSION = 1
"""Format version of `novel_view.json`."""
MAX_TURN_DEG, MAX_ROLL_DEG, MAX_SHIFT = 60.0, 180.0, 1.0
"""Largest turn, roll and shift; beyond them a single photograph shows almost nothing of the view."""
KEY_SHARES = {"arc": (1.0, 0.5), "swing": (1.0, -1.0, 0.5, -0.5)}
"""Shares of the pose that the model fills, in this order; frames between them are warped from them."""
HALO_PX = 2
"""Width of the strip beyond an edge that becomes hole, since lenses and scaling mix colours and maps miss edges."""
SPECK_PX = 8
"""Number of pixels up to which an island is dropped."""
VOXEL_PX = 0.5
"""Side of the cloud's voxels, in pixels at the photograph's median depth."""
PathKind = Literal["arc", "swing"]
Fill = Callable[[Warped, int], list[np.ndarray]]
"""Paints the holes of key view number i; returns one or more pictures uint8 [H, W, 3]. Later views use the first."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Place of the new camera on an orbit (see `orbit`) around the point at median depth."""

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Shift to the right, down and forward, as shares of the median depth."""

    def camera(self, source: Camera, median_depth: float, share: float = 1.0) -> Camera:
        """Returns the camera at a share of the way to this pose; 0 is the photograph's own camera."""
        yaw, pitch, roll = np.deg2rad([self.yaw_deg, self.pitch_deg, self.roll_deg]) * share
        right, down, forward = (share * median_depth * part for part in self.shift)
        return orbit(source, median_depth, yaw=yaw, pitch=pitch, roll=roll, shift=(right, down, forward))


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """Settings of the moving picture."""

    kind: PathKind = "arc"
    """`arc` goes to the pose and back, `swing` also to its opposite."""
    frames: int = 24
    frames_per_s: float = 12.0
    longest_px: int = 640
    """Longest side of a frame; the views themselves keep the photograph's size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyView:
    """A view after warping and filling."""

    warped: Warped
    pictures: list[np.ndarray]
    """Whole pictures, uint8 [H, W, 3] each."""
    addition: View
    """New part beside the earlier views: the hole, and a seam of one pixel around it."""


@dataclass(frozen=True, kw_only=True)
class DepthRange:
    """Depth of a photograph, in the unit of its depth map."""

    median: float
    nearest: float
    farthest: float


@dataclass(frozen=True, kw_only=True)
class NovelViews:
    """The content of `novel_view.json`, without the caller's notes."""

    schema_version: int = SCHEMA_VERSION
    pose: Pose
    path: PathSettings
    size_px: tuple[int, int]
    """Width and height of the views."""
    focal_px: float
    halo_px: int
    depth: DepthRange
    hole_share: list[float]
    """Share of hidden pixels in each key view."""
    frame_share_without_model: float
    """Share of the frames' pixels that no view holds."""
    cloud_points: int
    mp4: str | None
    """File of the MP4; None if it could not be written."""
    mp4_error: str | None
    """Reason why there is no MP4."""


def check_pose(pose: Pose) -> None:
    """Raises UserError if a pose is not finite, beyond the limits, or the photograph's own."""
    values = {"--yaw": pose.yaw_deg, "--pitch": pose.pitch_deg, "--roll": pose.roll_deg}
    limits = {"--yaw": MAX_TURN_DEG, "--pitch": MAX_TURN_DEG, "--roll": MAX_ROLL_DEG}
    for name, value in values.items():
        if not abs(value) <= limits[name]:
            raise UserError(f"{name}: {value:g} degrees; choose one between -{limits[name]:g} and {limits[name]:g}")
    if not all(abs(part) <= MAX_SHIFT for part in pose.shift) or pose.shift[2] >= 0.9:
        raise UserError(
            f"--shift: {pose.shift}; shares of the median depth between -{MAX_SHIFT:g} and {MAX_SHIFT:g}, "
            "forward less than 0.9"
        )
    if not any(values.values()) and not any(pose.shift):
        raise UserError("novel-view: that is the photograph's own view; give --yaw, --pitch, --roll or --shift")


def complete(views: Sequence[View], camera: Camera, fill: Fill, number: int, *, halo_px: int = HALO_PX) -> KeyView:
    """Returns the views as `camera` sees them, with holes filled in colour and depth.

    The addition leaves out pixels that lie in front of a surface that a view saw: the view saw through them.
    Raises UserError if the camera sees nothing of the views.
    """
    warped = warp(views, camera, halo_px=halo_px, speck_px=SPECK_PX)
    depth = fill_depth(warped)
    pictures = fill(warped, number) if warped.hole.any() else [warped.rgb]
    known = warped.hole | (binary_dilation(warped.hole, np.ones((3, 3))) & ~warped.near_edge)
    u, v = pixel_grid(camera)
    for view in views:
        known[known] = ~is_seen_through(unproject(camera, u[known], v[known], depth[known]), view)
    addition = View(camera=camera, rgb=pictures[0], depth=depth, known=known)
    return KeyView(warped=warped, pictures=pictures, addition=addition)


def path_shares(path: PathSettings) -> np.ndarray:
    """Returns the share of the pose for each frame, without a jump from the last frame to the first."""
    turns = np.arange(path.frames) / path.frames * 2 * np.pi
    return (1 - np.cos(turns)) / 2 if path.kind == "arc" else np.sin(turns)


def make_novel_views(
    rgb: np.ndarray,
    depth: np.ndarray,
    pose: Pose,
    fill: Fill,
    out: Path,
    *,
    focal_px: float | None = None,
    halo_px: int = HALO_PX,
    path: PathSettings,
    notes: Mapping[str, object],
) -> NovelViews:
    """Writes the pictures, `cloud.ply` and last `novel_view.json` of a photograph into `out`; docs/views.md lists them.

    Shapes: photograph uint8 [H, W, 3], depth float64 [H, W]. Raises UserError if the pose shows nothing of it.
    """
    check_pose(pose)
    source = whole_view(camera_at_origin(rgb.shape[1], rgb.shape[0], focal_px), rgb, depth)
    median = float(np.median(depth))
    with progress_bar(stage="novel-view", total=len(KEY_SHARES[path.kind]) + path.frames) as bar:
        keys, views = _fill_key_views(source, pose, median, path, fill, halo_px, bar)
        frames, left_over = _draw_frames(views, pose, median, path, bar)
    cloud = fuse(views, voxel=VOXEL_PX * median / source.camera.focal_px)
    mp4_error = _save(keys[0], cloud, frames, path.frames_per_s, out)
    record = NovelViews(
        pose=pose,
        path=path,
        size_px=(source.camera.width_px, source.camera.height_px),
        focal_px=source.camera.focal_px,
        halo_px=halo_px,
        depth=DepthRange(median=median, nearest=float(depth.min()), farthest=float(depth.max())),
        hole_share=[float(key.warped.hole.mean()) for key in keys],
        frame_share_without_model=left_over,
        cloud_points=len(cloud.points),
        mp4="path.mp4" if mp4_error is None else None,
        mp4_error=mp4_error,
    )
    atomic_write_json(out / "novel_view.json", asdict(record) | dict(notes))
    return record


def _fill_key_views(
    source: View, pose: Pose, median: float, path: PathSettings, fill: Fill, halo_px: int, bar: tqdm
) -> tuple[list[KeyView], list[View]]:
    """Returns the key views, and the source with their additions."""
    views, keys = [source], []
    for number, share in enumerate(KEY_SHARES[path.kind]):
        camera = pose.camera(source.camera, median, share)
        keys.append(complete(views, camera, fill, number, halo_px=halo_px))
        views.append(keys[-1].addition)
        bar.update()
    return keys, views


def _draw_frames(
    views: Sequence[View], pose: Pose, median: float, path: PathSettings, bar: tqdm
) -> tuple[list[np.ndarray], float]:
    """Returns frames, and the share of their pixels that no view holds: they get the nearest background's colour."""
    camera = views[0].camera
    factor = min(1.0, path.longest_px / max(camera.width_px, camera.height_px))
    frames, missing = [], []
    for share in path_shares(path):
        seen = warp(views, pose.camera(camera, median, float(share)).scaled(factor))
        frames.append(fill_with_nearest_background(seen))
        missing.append(seen.hole.mean())
        bar.update()
    return frames, float(np.mean(missing))


def _save(key: KeyView, cloud: PointCloud, frames: Sequence[np.ndarray], frames_per_s: float, out: Path) -> str | None:
    """Writes pictures, cloud, GIF and MP4; if ffmpeg writes no MP4, removes an earlier one and returns the reason."""
    hole = key.warped.hole
    pictures = {f"view{f'_{i}' if i else ''}.png": picture for i, picture in enumerate(key.pictures)}
    pictures["warped.png"] = np.where(hole[..., None], 128, key.warped.rgb).astype(np.uint8)
    pictures["disocclusion.png"] = np.where(hole, 255, 0).astype(np.uint8)
    for name, pixels in pictures.items():
        save_png(pixels, out / name)
    write_ply(cloud, out / "cloud.ply")
    write_gif(frames, out / "path.gif", frames_per_s=frames_per_s)
    try:
        write_mp4(frames, out / "path.mp4", frames_per_s=frames_per_s)
    except UserError as error:
        (out / "path.mp4").unlink(missing_ok=True)
        return str(error)
    return None


def paint_with(policy: "Policy", *, num_inference_steps: int, seed: int, samples: int = 1) -> Fill:
    """Returns a `Fill` that paints with an inpainting policy in tiles of its native size, `samples` of the first view.

    The policy sees the picture without the objects in front of the holes (`hide_near_side`), and fills only the holes.
    """
    from rlhf.diffusion.tile_painting import paint, to_canvas

    def fill(warped: Warped, number: int) -> list[np.ndarray]:
        """Paints the holes of key view `number`."""
        indices = tuple(range(samples if number == 0 else 1))
        canvas = to_canvas(hide_near_side(warped), warped.hole)
        key = (seed, "novel-view", number)
        done = paint(policy, canvas, sample_indices=indices, num_inference_steps=num_inference_steps, seed_key=key)
        return [np.where(warped.hole[..., None], canvas.rgb, warped.rgb) for canvas in done]

    return fill
