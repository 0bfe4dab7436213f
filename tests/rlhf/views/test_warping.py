"""Forward warping against closed forms and slow loops."""

from dataclasses import replace

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.classical_fills import fill_biharmonic
from rlhf.views.cameras import Camera, camera_at_origin, orbit, pixel_grid, project, unproject
from rlhf.views.depth_filling import fill_depth, fill_with_nearest_background, hide_near_side
from rlhf.views.surfaces import find_joints, sharpen_edges
from rlhf.views.warping import View, warp, whole_view

FOCAL, DEPTH = 50.0, 4.0


def picture(height: int = 24, width: int = 36) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def moved_right(camera: Camera, baseline: float) -> Camera:
    return replace(camera, position=np.array([baseline, 0.0, 0.0]))


def plane(depth: float = DEPTH) -> View:
    rgb = picture()
    return whole_view(camera_at_origin(36, 24, FOCAL), rgb, np.full(rgb.shape[:2], depth))


def square_before_plane(near: float = 2.0, far: float = 4.0) -> View:
    view = plane(far)
    depth = view.depth.copy()
    depth[8:16, 12:22] = near
    return replace(view, depth=depth)


@pytest.mark.parametrize("splat", ["bilinear", "point"])
def test_the_same_camera_sees_the_same_picture_and_no_hole(splat: str):
    view = whole_view(camera_at_origin(36, 24), picture(), 1 + 5 * np.random.default_rng(1).random((24, 36)))
    seen = warp([view], view.camera, splat=splat, halo_px=2)
    assert not seen.hole.any()
    assert np.array_equal(seen.rgb, view.rgb)
    assert np.allclose(seen.depth, view.depth)


@pytest.mark.parametrize("disparity", [1, 3, 7])
def test_a_plane_moves_by_focal_times_baseline_over_depth(disparity: int):
    view = plane()
    seen = warp([view], moved_right(view.camera, disparity * DEPTH / FOCAL))
    assert np.array_equal(seen.rgb[:, : 36 - disparity], view.rgb[:, disparity:])
    assert not seen.hole[:, : 36 - disparity].any()
    assert seen.hole[:, 36 - disparity :].all()


def test_half_a_pixel_mixes_two_pixels_evenly():
    view = plane()
    seen = warp([view], moved_right(view.camera, 1.5 * DEPTH / FOCAL))
    mean = (view.rgb[:, 2:35].astype(float) + view.rgb[:, 1:34]) / 2
    # Column 0 lies between columns 1 and 2 of the source, and so on.
    assert np.abs(seen.rgb[:, :33] - mean).max() <= 0.5


def test_what_comes_out_from_behind_a_square_is_the_analytic_strip():
    view = square_before_plane(near=2.0, far=4.0)
    baseline = 0.4
    near_shift, far_shift = (round(FOCAL * baseline / z) for z in (2.0, 4.0))
    seen = warp([view], moved_right(view.camera, baseline))
    expected = np.zeros((24, 36), bool)
    expected[:, 36 - far_shift :] = True
    # Seen from further right, the square moves left and uncovers what was behind its right edge.
    expected[8:16, 22 - near_shift : 22 - far_shift] = True
    assert np.array_equal(seen.hole, expected)
    assert np.allclose(seen.depth[8:16, 12 - near_shift : 22 - near_shift], 2.0)


def test_the_far_side_keeps_its_distance_from_a_hole_by_the_halo():
    view = square_before_plane()
    camera = moved_right(view.camera, 0.4)
    exact, wide = warp([view], camera), warp([view], camera, halo_px=1)
    added = wide.hole & ~exact.hole
    assert added[8:16, 17].all()
    assert added.sum() <= 8 + 2 * 6
    assert np.allclose(exact.depth[added], 4.0)


def test_a_wide_halo_takes_nothing_from_the_object():
    view = square_before_plane()
    seen = warp([view], moved_right(view.camera, 0.4), halo_px=4)
    assert np.allclose(seen.depth[8:16, 2:12], 2.0)
    assert seen.hole[8:16, 12:21].all()
    assert not seen.hole[8:16, 22:30].any()


def test_the_z_buffer_is_that_of_a_slow_loop():
    rng = np.random.default_rng(2)
    rgb, depth = picture(), 1 + 5 * rng.random((24, 36))
    view = whole_view(camera_at_origin(36, 24, FOCAL), rgb, depth)
    camera = orbit(view.camera, 3.0, yaw=0.2, pitch=0.1)
    seen = warp([view], camera, splat="point")
    u, v = pixel_grid(view.camera)
    columns, rows, z = project(camera, unproject(view.camera, u, v, depth))
    nearest, colour = np.full((24, 36), np.inf), np.zeros((24, 36, 3), np.uint8)
    for i in range(24):
        for j in range(36):
            row, column = int(np.floor(rows[i, j] + 0.5)), int(np.floor(columns[i, j] + 0.5))
            if 0 <= row < 24 and 0 <= column < 36 and z[i, j] < nearest[row, column]:
                nearest[row, column], colour[row, column] = z[i, j], rgb[i, j]
    hit = np.isfinite(nearest)
    assert hit.mean() > 0.3
    assert np.allclose(seen.depth[hit], nearest[hit])
    assert np.array_equal(seen.rgb[hit], colour[hit])


@pytest.mark.parametrize(("yaw", "pitch", "forward"), [(0.5, 0.0, 0.0), (-0.4, 0.2, 0.0), (0.0, 0.0, 2.2)])
def test_a_slanted_plane_does_not_crack_when_it_is_stretched(yaw: float, pitch: float, forward: float):
    camera = camera_at_origin(60, 60, 60.0)
    u, v = pixel_grid(camera)
    # The plane n . p = 4 has inverse depth n . ray / 4, which is linear in pixels.
    inverse = (1 + 0.5 * (u - 29.5) / 60 + 0.3 * (v - 29.5) / 60) / 4
    view = whole_view(camera, picture(60, 60), 1 / inverse)
    seen = warp([view], orbit(camera, 4.0, yaw=yaw, pitch=pitch, shift=(0, 0, forward)))
    middle = np.zeros((60, 60), bool)
    middle[20:40, 20:40] = True
    assert not seen.hole[middle].any()


def test_two_views_share_one_z_buffer():
    near, far = plane(2.0), plane(4.0)
    half = replace(near, known=np.arange(36)[None] < np.full((24, 1), 18))
    seen = warp([far, half], near.camera)
    assert np.allclose(seen.depth[:, :18], 2.0)
    assert np.allclose(seen.depth[:, 18:], 4.0)


def test_joints_are_on_planes_and_not_over_steps_or_past_thin_things():
    depth = np.full((5, 9), 4.0)
    depth[:, 4] = 2.0
    across, down = find_joints(depth, np.ones((5, 9), bool))
    assert not across[:, 3:5].any()
    assert np.delete(across, [3, 4], axis=1).all()
    assert down.all()
    slanted = 1 / np.linspace(0.4, 0.9, 9)[None].repeat(5, axis=0)
    assert find_joints(slanted, np.ones((5, 9), bool))[0].all()


def test_ramps_become_steps_and_planes_stay():
    step = np.array([4.0] * 6 + [3.5, 3.0, 2.5] + [2.0] * 6)[None].repeat(6, axis=0)
    assert set(np.unique(sharpen_edges(step).round(6))) == {2.0, 4.0}
    plane_depth = 1 / np.linspace(0.25, 0.26, 15)[None].repeat(6, axis=0)
    assert np.allclose(sharpen_edges(plane_depth), plane_depth)


def test_depth_behind_a_square_is_that_of_the_plane_behind_it():
    view = square_before_plane()
    seen = warp([view], moved_right(view.camera, 0.4))
    depth = fill_depth(seen)
    assert np.allclose(depth[seen.hole], 4.0)
    assert np.array_equal(depth[~seen.hole], seen.depth[~seen.hole])


def test_depth_goes_on_along_a_slanted_plane_behind_a_square():
    camera = camera_at_origin(60, 60, 60.0)
    u, v = pixel_grid(camera)
    depth = 1 / (0.25 + 0.001 * (v - 29.5))
    exact = warp([whole_view(camera, picture(60, 60), depth)], camera)
    hole = np.zeros((60, 60), bool)
    hole[20:30, 20:30] = True
    damaged = replace(exact, hole=hole, depth=np.where(hole, np.nan, exact.depth), near_edge=np.zeros_like(hole))
    assert np.allclose(fill_depth(damaged), depth)


def test_depth_goes_on_along_a_slanted_plane_beyond_the_pictures_edge():
    camera = camera_at_origin(60, 60, 60.0)
    u, v = pixel_grid(camera)
    depth = 1 / (0.25 + 0.001 * (v - 29.5) + 0.0005 * (u - 29.5))
    exact = warp([whole_view(camera, picture(60, 60), depth)], camera)
    hole = np.zeros((60, 60), bool)
    hole[:, 45:] = True
    damaged = replace(exact, hole=hole, depth=np.where(hole, np.nan, exact.depth), near_edge=np.zeros_like(hole))
    assert np.allclose(fill_depth(damaged), depth)


def test_nearest_background_takes_nothing_from_the_object_in_front():
    view = square_before_plane()
    rgb = np.full_like(view.rgb, 200)
    rgb[8:16, 12:22] = 10
    seen = warp([replace(view, rgb=rgb)], moved_right(view.camera, 0.4))
    assert (fill_with_nearest_background(seen)[seen.hole] == 200).all()
    smooth = fill_biharmonic(seen.rgb, seen.hole)
    assert np.array_equal(smooth[~seen.hole], seen.rgb[~seen.hole])


def test_who_paints_is_not_shown_what_stands_in_front_of_a_hole():
    view = square_before_plane()
    rgb = np.full_like(view.rgb, 200)
    rgb[8:16, 12:22] = 10
    seen = warp([replace(view, rgb=rgb)], moved_right(view.camera, 0.4))
    context = hide_near_side(seen)
    assert (context[~seen.hole] == 200).all()
    assert np.array_equal(context[seen.hole], seen.rgb[seen.hole])


def test_a_camera_that_sees_nothing_is_an_error_of_the_users():
    view = plane()
    away = replace(view.camera, position=np.array([0.0, 0.0, 10.0]))
    with pytest.raises(UserError, match="nothing of the photograph"):
        fill_depth(warp([view], away))
