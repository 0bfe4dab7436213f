"""New views of one photograph with depth: warped, filled, animated along a path, and fused into a point cloud.

The first key view is the one that was asked for. Every further one is warped from the photograph and from what was
filled before, so that what is painted once is seen again from everywhere. Colours of a hole come from `Fill`, its depth
from `fill_depth`, whoever paints.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.storage.atomic_files import atomic_write, atomic_write_json
from rlhf.storage.images import encode_png
from rlhf.views.animation import write_gif, write_mp4
from rlhf.views.cameras import Camera, camera_at_origin, orbit, pixel_grid, unproject
from rlhf.views.depth_filling import fill_depth, fill_with_nearest_background, hide_near_side
from rlhf.views.point_cloud import fuse, write_ply
from rlhf.views.warping import View, Warped, is_seen_through, warp, whole_view

SCHEMA_VERSION = 1
"""Of `novel_view.json`."""
MAX_TURN_DEG, MAX_ROLL_DEG, MAX_SHIFT = 60.0, 180.0, 1.0
"""Beyond these a single photograph has next to nothing to say about what is seen."""
KEY_SHARES = {"arc": (1.0, 0.5), "swing": (1.0, -1.0, 0.5, -0.5)}
"""Shares of the pose that are filled by the model, in this order; what lies between is warped from them."""
HALO_PX = 2
"""Pixels on the far side of an edge whose colours are not trusted: lenses and scaling mix them, and maps miss edges."""
SPECK_PX = 8
"""Islands of up to so many pixels that are dropped."""
VOXEL_PX = 0.5
"""Side of the cloud's cubes in pixels at the photograph's median depth."""
PathKind = Literal["arc", "swing"]
Fill = Callable[[Warped, int], list[np.ndarray]]
"""Paints the holes of key view number i: pictures uint8 [H, W, 3], at least one; the first one is gone on with."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where the new camera is, as `orbit` has it, around the point at median depth."""

    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """To the right, down and forward, as shares of the median depth."""

    def camera(self, source: Camera, median_depth: float, share: float = 1.0) -> Camera:
        """The camera at a share of the way to this pose; 0 is the photograph's own."""
        yaw, pitch, roll = np.deg2rad([self.yaw_deg, self.pitch_deg, self.roll_deg]) * share
        right, down, forward = (share * median_depth * part for part in self.shift)
        return orbit(source, median_depth, yaw=yaw, pitch=pitch, roll=roll, shift=(right, down, forward))


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """The moving picture."""

    kind: PathKind = "arc"
    """`arc` goes to the pose and back, `swing` also to its opposite."""
    frames: int = 24
    frames_per_s: float = 12.0
    longest_px: int = 640
    """Longest side of a frame; the views themselves keep the photograph's size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyView:
    """A view that was warped and filled."""

    warped: Warped
    pictures: list[np.ndarray]
    """Whole pictures, uint8 [H, W, 3] each."""
    addition: View
    """What it adds to the views before it: the hole, and a seam of one pixel around it."""


def check_pose(pose: Pose) -> None:
    """UserError where a pose is not finite, absurd, or no pose at all."""
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
    """What `camera` sees of the views, its holes filled with colour and depth.

    What was filled in front of something that a view saw is no part of the addition: the view saw through it.
    Raises UserError where it sees nothing of them.
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
    """Shares of the pose, one per frame, evenly in time and without a jump from the last frame to the first."""
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
    path: PathSettings | None = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write all results of a photograph uint8 [H, W, 3] with depth float64 [H, W] into `out`.

    `view.png` (further samples `view_1.png`, ...), `warped.png`, `disocclusion.png` (white = hole), `path.gif`,
    `path.mp4` where ffmpeg is installed, `cloud.ply` and, last, `novel_view.json`, which is returned with `notes`.
    Raises UserError where the pose is absurd or shows nothing of the photograph.
    """
    check_pose(pose)
    path = path or PathSettings()
    source = whole_view(camera_at_origin(rgb.shape[1], rgb.shape[0], focal_px), rgb, depth)
    median = float(np.median(depth))
    views, keys = [source], []
    shares = KEY_SHARES[path.kind]
    bar = progress_bar(stage="novel-view", total=len(shares) + path.frames)
    for number, share in enumerate(shares):
        keys.append(complete(views, pose.camera(source.camera, median, share), fill, number, halo_px=halo_px))
        views.append(keys[-1].addition)
        bar.update()
    _save_key_view(keys[0], out)
    frames, left_over = _draw_frames(views, pose, median, path, bar)
    bar.close()
    write_gif(frames, out / "path.gif", frames_per_s=path.frames_per_s)
    no_mp4 = write_mp4(frames, out / "path.mp4", frames_per_s=path.frames_per_s)
    cloud = fuse(views, voxel=VOXEL_PX * median / source.camera.focal_px)
    write_ply(cloud, out / "cloud.ply")
    record = {
        "schema_version": SCHEMA_VERSION,
        "pose": asdict(pose),
        "path": asdict(path),
        "size_px": [source.camera.width_px, source.camera.height_px],
        "focal_px": source.camera.focal_px,
        "halo_px": halo_px,
        "depth": {"median": median, "nearest": float(depth.min()), "farthest": float(depth.max())},
        "hole_share": [float(key.warped.hole.mean()) for key in keys],
        "frame_share_without_model": left_over,
        "cloud_points": len(cloud.points),
        "mp4": no_mp4 or "path.mp4",
    } | (notes or {})
    atomic_write_json(out / "novel_view.json", record)
    return record


def _draw_frames(
    views: Sequence[View], pose: Pose, median: float, path: PathSettings, bar: Any
) -> tuple[list[np.ndarray], float]:
    """Frames, and the share of their pixels that no view holds: these have the colour of the nearest background."""
    camera = views[0].camera
    factor = min(1.0, path.longest_px / max(camera.width_px, camera.height_px))
    frames, missing = [], []
    for share in path_shares(path):
        seen = warp(views, pose.camera(camera, median, float(share)).scaled(factor))
        frames.append(fill_with_nearest_background(seen))
        missing.append(seen.hole.mean())
        bar.update()
    return frames, float(np.mean(missing))


def _save_key_view(key: KeyView, out: Path) -> None:
    hole = key.warped.hole
    pictures = {f"view{f'_{i}' if i else ''}.png": picture for i, picture in enumerate(key.pictures)}
    pictures["warped.png"] = np.where(hole[..., None], 128, key.warped.rgb).astype(np.uint8)
    pictures["disocclusion.png"] = np.where(hole, 255, 0).astype(np.uint8)
    for name, pixels in pictures.items():
        save_picture(pixels, out / name)


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W, 3] or [H, W] as a PNG."""
    data = encode_png(Image.fromarray(pixels))
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def paint_with(policy: Any, *, num_inference_steps: int, seed: int, samples: int = 1) -> Fill:
    """A `Fill` by an inpainting policy, in squares of the size that it was made for; `samples` of the first view.

    It is shown the picture without what stands in front of the holes (`hide_near_side`), and fills the holes alone.
    """
    from rlhf.diffusion.tile_painting import paint, to_canvas

    def fill(warped: Warped, number: int) -> list[np.ndarray]:
        indices = tuple(range(samples if number == 0 else 1))
        canvas = to_canvas(hide_near_side(warped), warped.hole)
        key = (seed, "novel-view", number)
        done = paint(policy, canvas, sample_indices=indices, num_inference_steps=num_inference_steps, seed_key=key)
        return [np.where(warped.hole[..., None], canvas.rgb, warped.rgb) for canvas in done]

    return fill
