"""Synthetic scenes for fused reconstruction: one view with exact depth is known, four more are filled.

A *true point* is a point of the surfaces that the held-out cameras see. *Completeness* is the share of true points with
a point of the cloud within TOLERANCE. *Accuracy* is the mean distance of the cloud's points from the nearest true
surface, computed from the geometry; *precision* is the share of points within TOLERANCE of it. *Added* accuracy and
precision are those of the points that filling added. Renderings are the cloud's views from the held-out cameras; open
pixels get the colour of the nearest background. *Unseen* pixels are those that the known view does not reach and the
filled views do.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf.evaluation.tasks.synthetic_scene import Thing, make_scene, render, surface_distance
from rlhf.evaluation.tasks.views_records import CloudFigures
from rlhf.views.cameras import camera_at_origin
from rlhf.views.depth_filling import fill_with_nearest_background
from rlhf.views.novel_view import Fill, Pose, complete
from rlhf.views.point_cloud import completeness, fuse, thin
from rlhf.views.warping import View, warp

SIZE_PX, FOCAL_PX = (192, 144), 170.0
KEY_POSES = tuple(Pose(yaw_deg=yaw, pitch_deg=pitch) for yaw, pitch in ((17, 0), (-17, 0), (0, 8.5), (0, -8.5)))
"""Ends of the paper's camera grid: yaw +-0.3 rad, pitch +-0.15 rad."""
HELD_OUT_POSES = tuple(Pose(yaw_deg=yaw, pitch_deg=pitch) for yaw in (-12, 12) for pitch in (-5, 5))
TOLERANCE = 0.05
"""Distance in the scenes' unit (rooms are 9 long); two pixels at a distance of 4."""
SPACING = 0.025
"""Spacing of true points and of the cloud's points."""


def measure_scene(
    seed: int, fills: Mapping[str, Fill], *, scale: float = 1.0
) -> tuple[dict[str, CloudFigures], dict[str, list[np.ndarray]]]:
    """Returns figures and renderings by name of the filler; `without` stands for the known view alone.

    `truth` among the renderings is the true view of the held-out cameras. `scale` multiplies the sides of all pictures.
    """
    things = make_scene(seed)
    source = render(things, camera_at_origin(*SIZE_PX, FOCAL_PX).scaled(scale))
    median = float(np.median(source.depth))
    truths = [render(things, pose.camera(source.camera, median)) for pose in HELD_OUT_POSES]
    true_points = thin(fuse(truths), SPACING).points
    figures = {}
    renderings = {"truth": [truth.rgb for truth in truths]}
    for name in ("without", *fills):
        views = [source]
        for number, pose in enumerate(KEY_POSES if name in fills else ()):
            views.append(complete(views, pose.camera(source.camera, median), fills[name], number, halo_px=0).addition)
        figures[name] = _judge(things, views, truths, true_points)
        renderings[name] = [fill_with_nearest_background(warp(views, truth.camera)) for truth in truths]
    return figures, renderings


def _judge(
    things: Sequence[Thing], views: Sequence[View], truths: Sequence[View], true_points: np.ndarray
) -> CloudFigures:
    cloud = fuse(views, voxel=SPACING)
    known = len(fuse(views[:1]).points)
    added = fuse(views).points[known:]
    distances, added_distances = surface_distance(things, cloud.points), surface_distance(things, added)
    whole, unseen, reached = zip(*(_compare(views, truth) for truth in truths), strict=True)
    return CloudFigures(
        points=len(cloud.points),
        completeness=completeness(cloud.points, true_points, TOLERANCE),
        accuracy=float(distances.mean()),
        precision=float((distances <= TOLERANCE).mean()),
        added_accuracy=float(added_distances.mean()) if len(added) else None,
        added_precision=float((added_distances <= TOLERANCE).mean()) if len(added) else None,
        reached=float(np.mean(reached)),
        psnr=_decibel(np.concatenate(whole)),
        psnr_unseen=_decibel(np.concatenate(unseen)),
        unseen_pixels=sum(len(errors) for errors in unseen),
    )


def _compare(views: Sequence[View], truth: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns squared errors of all and of unseen pixels [N], and the mask [H, W] of pixels that the cloud reaches."""
    seen, known = warp(views, truth.camera), warp(views[:1], truth.camera)
    error = np.square(fill_with_nearest_background(seen).astype(float) - truth.rgb).mean(axis=2)
    return error.ravel(), error[known.hole & ~seen.hole], ~seen.hole


def _decibel(squared_errors: np.ndarray) -> float | None:
    """Returns PSNR in dB; None if there is no pixel."""
    if not len(squared_errors):
        return None
    return float(10 * np.log10(255**2 / max(float(squared_errors.mean()), 1e-12)))
