"""Clouds: on the true surfaces, and in files that viewers open."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData

from rlhf.evaluation.tasks.synthetic_scene import LIGHT, Box, Sphere, Texture, make_scene, render, surface_distance
from rlhf.views.cameras import camera_at_origin, orbit, pixel_grid
from rlhf.views.point_cloud import PointCloud, completeness, fuse, thin, write_ply
from rlhf.views.warping import is_seen_through, whole_view


def plain_texture() -> Texture:
    return Texture(colours=np.full((2, 3), 128.0), cell=1.0, kind="checks", phase=np.zeros(3))


def cloud(count: int = 100) -> PointCloud:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3)).astype(np.float32).astype(float)
    return PointCloud(points=points, colours=rng.integers(0, 256, (count, 3), dtype=np.uint8))


def test_a_written_cloud_is_read_back_by_plyfile(tmp_path: Path):
    written = cloud()
    write_ply(written, tmp_path / "cloud.ply")
    vertices = PlyData.read(tmp_path / "cloud.ply")["vertex"]
    points = np.stack([vertices[name].astype(float) for name in "xyz"], axis=1) * (1, -1, -1)
    assert np.array_equal(points, written.points)
    assert np.array_equal(np.stack([vertices[n] for n in ("red", "green", "blue")], axis=1), written.colours)


def test_the_header_is_what_viewers_read(tmp_path: Path):
    write_ply(cloud(7), tmp_path / "cloud.ply")
    data = (tmp_path / "cloud.ply").read_bytes()
    header = (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 7\nproperty float x\nproperty float y\n"
        b"property float z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    assert data.startswith(header)
    assert len(data) == len(header) + 7 * 15


def test_files_have_y_up(tmp_path: Path):
    one = PointCloud(points=np.array([[1.0, 2.0, 3.0]]), colours=np.zeros((1, 3), np.uint8))
    write_ply(one, tmp_path / "cloud.ply")
    assert PlyData.read(tmp_path / "cloud.ply")["vertex"][0].tolist() == (1, -2, -3, 0, 0, 0)


def test_ray_cast_depth_of_a_wall_and_a_ball_is_the_closed_form():
    camera = camera_at_origin(41, 31, 40.0)
    room = Box(low=np.array([-90, -90, -1.0]), high=np.array([90, 90, 5.0]), texture=plain_texture(), is_room=True)
    assert np.allclose(render([room], camera).depth, 5.0)
    ball = Sphere(centre=np.array([0.0, 0, 4]), radius=1.0, texture=plain_texture())
    view = render([ball], camera)
    u, v = pixel_grid(camera)
    rays = np.stack([(u - 20) / 40, (v - 15) / 40, np.ones_like(u)], -1)
    b, a = 4.0, (rays**2).sum(-1)
    root = b**2 - a * 15.0
    expected = np.where(root >= 0, (b - np.sqrt(root.clip(0))) / a, np.inf)
    assert np.isfinite(expected).sum() > 100
    assert np.allclose(view.depth, expected)
    assert view.depth[15, 20] == pytest.approx(3.0)


def test_distances_to_surfaces_are_the_closed_forms():
    ball = Sphere(centre=np.zeros(3), radius=1.0, texture=plain_texture())
    box = Box(low=-np.ones(3), high=np.ones(3), texture=plain_texture())
    points = np.array([[0.0, 0, 3], [0, 0, 0.5], [2.0, 2, 0]])
    assert ball.distance(points) == pytest.approx([2.0, 0.5, np.sqrt(8) - 1])
    assert box.distance(points) == pytest.approx([2.0, 0.5, np.sqrt(2)])
    assert np.linalg.norm(LIGHT) > 0


def test_a_cloud_of_exact_views_lies_on_the_surfaces():
    things = make_scene(3)
    camera = camera_at_origin(64, 48, 56.0)
    views = [render(things, orbit(camera, 4.0, yaw=yaw)) for yaw in (0.0, 0.3, -0.3)]
    fused = fuse(views)
    assert surface_distance(things, fused.points).max() < 1e-9
    assert len(fused.points) > 0.95 * 3 * 64 * 48
    assert completeness(fused.points, fuse(views[:1]).points, 1e-6) == 1.0


def test_a_view_saw_through_what_lies_in_front_of_its_surfaces():
    camera = camera_at_origin(20, 20)
    view = whole_view(camera, np.zeros((20, 20, 3), np.uint8), np.full((20, 20), 4.0))
    points = np.array([[0.0, 0, 2], [0, 0, 3.99], [0, 0, 5], [0, 0, -1], [90, 0, 2]])
    assert is_seen_through(points, view).tolist() == [True, False, False, False, False]
    assert not is_seen_through(points, replace(view, known=np.zeros((20, 20), bool))).any()


def test_thinning_takes_means_of_cubes():
    two = PointCloud(
        points=np.array([[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [0.7, 0.1, 0.1]]),
        colours=np.array([[0, 0, 0], [100, 0, 0], [9, 9, 9]], np.uint8),
    )
    thinned = thin(two, 0.5)
    assert thinned.points == pytest.approx(np.array([[0.2, 0.1, 0.1], [0.7, 0.1, 0.1]]))
    assert thinned.colours.tolist() == [[50, 0, 0], [9, 9, 9]]


def test_completeness_is_a_share_within_the_tolerance():
    truth = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    assert completeness(truth[:2] + 0.05, truth, 0.1) == 0.5
    assert completeness(truth[:0], truth, 0.1) == 0.0
    assert np.isnan(completeness(truth, truth[:0], 0.1))
