"""Cameras against closed forms."""

import numpy as np
import pytest

from rlhf.data.holes import disocclusion
from rlhf.views.cameras import camera_at_origin, orbit, pixel_grid, project, turn, unproject


def test_what_is_unprojected_projects_to_where_it_came_from():
    camera = orbit(camera_at_origin(31, 17, 40.0), 3.0, yaw=0.3, pitch=-0.2, roll=0.5, shift=(0.1, 0.2, -0.3))
    u, v = pixel_grid(camera)
    depth = 1 + np.random.default_rng(0).random(u.shape)
    columns, rows, z = project(camera, unproject(camera, u, v, depth))
    for found, expected in ((columns, u), (rows, v), (z, depth)):
        assert np.allclose(found, expected)


def test_the_pivot_of_an_orbit_stays_in_the_picture_and_at_its_distance():
    camera = camera_at_origin(40, 30)
    moved = orbit(camera, 5.0, yaw=0.4, pitch=0.3, roll=0.2)
    u, v, z = project(moved, np.array([0.0, 0.0, 5.0]))
    assert (float(u), float(v), float(z)) == pytest.approx((*camera.centre_px, 5.0))
    assert np.linalg.norm(moved.position - [0, 0, 5.0]) == pytest.approx(5.0)


def test_yaw_looks_from_the_right_and_pitch_from_above():
    camera = camera_at_origin(40, 30)
    assert orbit(camera, 5.0, yaw=0.3).position[0] > 0
    assert orbit(camera, 5.0, pitch=0.3).position[1] < 0


@pytest.mark.parametrize("angles", [(0.3, 0, 0), (0, 0.2, 0), (0.1, -0.2, 0.7)])
def test_turns_are_rotations(angles: tuple[float, float, float]):
    rotation = turn(*angles)
    assert np.allclose(rotation @ rotation.T, np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_the_axes_are_those_of_the_hole_family():
    depth = np.full((32, 32), 4.0)
    depth[10:20, 12:22] = 2.0
    camera = camera_at_origin(32, 32)
    moved = orbit(camera, float(np.median(depth)), yaw=0.3, pitch=0.15)
    u, v = pixel_grid(camera)
    columns, rows, _ = project(moved, unproject(camera, u, v, depth))
    leaves = (columns < -0.5) | (columns >= 31.5) | (rows < -0.5) | (rows >= 31.5)
    # The hole family puts pixel centres half a pixel aside, so borders may differ.
    assert (disocclusion(depth, yaw=0.3, pitch=0.15) | ~leaves).mean() > 0.95


def test_a_point_behind_the_camera_is_nowhere_in_the_picture():
    u, v, z = project(camera_at_origin(10, 10), np.array([[0.0, 0.0, -1.0]]))
    assert np.isnan([u, v]).all()
    assert z[0] == -1


def test_a_scaled_camera_sees_the_same_field():
    camera = camera_at_origin(40, 30, 50.0)
    half = camera.scaled(0.5)
    corners = [(c.centre_px[0] + 0.5) / c.focal_px for c in (camera, half)]
    assert (half.width_px, half.height_px) == (20, 15)
    assert corners[0] == pytest.approx(corners[1])
