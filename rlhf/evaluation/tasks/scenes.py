"""Synthetic scenes for fused reconstruction: one view with exact depth is known, four more are filled.

Written down once: a *true point* is a point of the surfaces that the held-out cameras see. *Completeness* is the share
of true points with a point of the cloud within TOLERANCE. *Accuracy* is the mean distance of the cloud's points from
the nearest true surface, computed from the geometry itself; *added accuracy* that of the points that filling added.
Renderings are the cloud's views from the held-out cameras, pixels that it leaves open with the colour of the nearest
background; *unseen* are the pixels that the known view does not reach and the filled ones do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evaluation.tasks.synthetic_scene import Thing, make_scene, render, surface_distance
from rlhf.views.cameras import camera_at_origin
from rlhf.views.depth_filling import fill_with_nearest_background
from rlhf.views.novel_view import Fill, Pose, complete
from rlhf.views.point_cloud import completeness, fuse, thin
from rlhf.views.warping import View, warp

SIZE_PX, FOCAL_PX = (192, 144), 170.0
KEY_POSES = tuple(Pose(yaw_deg=yaw, pitch_deg=pitch) for yaw, pitch in ((17, 0), (-17, 0), (0, 8.5), (0, -8.5)))
"""The ends of the paper's camera grid: yaw +-0.3 rad, pitch +-0.15 rad."""
HELD_OUT_POSES = tuple(Pose(yaw_deg=yaw, pitch_deg=pitch) for yaw in (-12, 12) for pitch in (-5, 5))
TOLERANCE = 0.05
"""In the scenes' unit, of which their rooms are 9 long; two pixels at a distance of 4."""
SPACING = 0.025
"""Of true points, and of the cloud."""


def measure_scene(
    seed: int, fills: Mapping[str, Fill], *, scale: float = 1.0
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Figures by name of the filler, `without` for the known view alone; and the renderings by the same names.

    `truth` among the renderings is what the held-out cameras really see. `scale` multiplies the sides of all pictures.
    """
    things = make_scene(seed)
    source = render(things, camera_at_origin(*SIZE_PX, FOCAL_PX).scaled(scale))
    median = float(np.median(source.depth))
    truths = [render(things, pose.camera(source.camera, median)) for pose in HELD_OUT_POSES]
    true_points = thin(fuse(truths), SPACING).points
    figures: dict[str, Any] = {}
    renderings = {"truth": [truth.rgb for truth in truths]}
    for name in ("without", *fills):
        views = [source]
        for number, pose in enumerate(KEY_POSES if name in fills else ()):
            views.append(complete(views, pose.camera(source.camera, median), fills[name], number, halo_px=0).addition)
        figures[name] = _judge_cloud(things, views, true_points)
        figures[name] |= _judge_renderings(views, truths)
        renderings[name] = [fill_with_nearest_background(warp(views, truth.camera)) for truth in truths]
    return figures, renderings


def _judge_cloud(things: Sequence[Thing], views: Sequence[View], true_points: np.ndarray) -> dict[str, float | None]:
    cloud = fuse(views, voxel=SPACING)
    known = len(fuse(views[:1]).points)
    added = fuse(views).points[known:]
    distances = surface_distance(things, cloud.points)
    return {
        "points": len(cloud.points),
        "completeness": completeness(cloud.points, true_points, TOLERANCE),
        "accuracy": float(distances.mean()),
        "precision": float((distances <= TOLERANCE).mean()),
        "added_accuracy": float(surface_distance(things, added).mean()) if len(added) else None,
        "added_precision": float((surface_distance(things, added) <= TOLERANCE).mean()) if len(added) else None,
    }


def _judge_renderings(views: Sequence[View], truths: Sequence[View]) -> dict[str, float | None]:
    """PSNR over all held-out cameras together, and the share of their pixels that the cloud reaches."""
    whole, unseen, reached = [], [], []
    for truth in truths:
        seen, known = warp(views, truth.camera), warp(views[:1], truth.camera)
        error = np.square(fill_with_nearest_background(seen).astype(float) - truth.rgb).mean(axis=2)
        whole.append(error.ravel())
        unseen.append(error[known.hole & ~seen.hole])
        reached.append(~seen.hole)
    return {
        "reached": float(np.mean(reached)),
        "psnr": _decibel(np.concatenate(whole)),
        "psnr_unseen": _decibel(np.concatenate(unseen)),
        "unseen_pixels": sum(len(errors) for errors in unseen),
    }


def _decibel(squared_errors: np.ndarray) -> float | None:
    """PSNR; None where there is nothing to measure."""
    if not len(squared_errors):
        return None
    return float(10 * np.log10(255**2 / max(float(squared_errors.mean()), 1e-12)))
