"""The whole way from a photograph with depth to views, moving pictures and a cloud; and the study."""

import json
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from command_line import rlhf
from PIL import Image
from plyfile import PlyData
from small_parts import save_moved_policy

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.policy import load_policy
from rlhf.errors import UserError
from rlhf.evaluation.tasks.scenes import measure_scene
from rlhf.evaluation.tasks.stereo_pair import PARTS, judge_against_truth, load_motorcycle, psnr
from rlhf.evaluation.tasks.synthetic_scene import make_scene, render
from rlhf.views.animation import write_gif, write_mp4
from rlhf.views.cameras import camera_at_origin
from rlhf.views.depth_filling import fill_with_nearest_background
from rlhf.views.novel_view import PathSettings, Pose, check_pose, complete, make_novel_views, paint_with, path_shares
from rlhf.views.warping import Warped, warp, whole_view


def nearest(warped: Warped, _: int) -> list[np.ndarray]:
    return [fill_with_nearest_background(warped)]


def small_view():
    return render(make_scene(1), camera_at_origin(64, 48, 60.0))


def test_all_results_are_written_and_known_pixels_are_those_of_the_warp(tmp_path: Path):
    view = small_view()
    path = PathSettings(kind="swing", frames=4)
    record = make_novel_views(
        view.rgb, view.depth, Pose(yaw_deg=15), nearest, tmp_path, focal_px=60.0, path=path, notes={"seed": 5}
    )
    assert len(record.hole_share) == 4
    pictures = [np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("view", "warped", "disocclusion")]
    filled, warped, hole = pictures
    assert filled.shape == view.rgb.shape
    assert 0.02 < (hole > 0).mean() < 0.5
    assert np.array_equal(filled[hole == 0], warped[hole == 0])
    with Image.open(tmp_path / "path.gif") as gif:
        assert (gif.n_frames, gif.size) == (4, (64, 48))
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - view.rgb).mean() < 4
    points = len(PlyData.read(tmp_path / "cloud.ply")["vertex"])
    assert points == record.cloud_points > 0.5 * 64 * 48
    written = json.loads((tmp_path / "novel_view.json").read_text())
    assert (written["pose"]["yaw_deg"], written["seed"]) == (15, 5)


def test_what_was_filled_once_is_seen_again():
    view = small_view()
    pose = Pose(yaw_deg=15)
    camera = pose.camera(view.camera, 4.0)
    first = complete([view], camera, nearest, 0)
    again = complete([view, first.addition], camera, nearest, 1)
    assert first.warped.hole.mean() > 0.02
    assert again.warped.hole.mean() < 0.5 * first.warped.hole.mean()


def test_a_path_begins_at_the_photograph_and_reaches_the_pose():
    arc, swing = (path_shares(PathSettings(kind=kind, frames=24)) for kind in ("arc", "swing"))
    assert arc[0] == swing[0] == 0
    assert arc.max() == swing.max() == 1
    assert swing.min() == -1


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        (Pose(yaw_deg=75), "--yaw: 75"),
        (Pose(pitch_deg=float("nan")), "--pitch: nan"),
        (Pose(roll_deg=400), "--roll"),
        (Pose(shift=(0, 0, 0.95)), "forward"),
        (Pose(), "own view"),
    ],
)
def test_absurd_poses_are_refused(pose: Pose, words: str):
    with pytest.raises(UserError, match=words):
        check_pose(pose)


def test_gif_and_mp4_keep_frames_and_speed(tmp_path: Path):
    frames = [np.full((9, 11, 3), level, np.uint8) for level in (0, 100, 200)]
    write_gif(frames, tmp_path / "a.gif", frames_per_s=10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (3, 100, 0)
    write_mp4(frames, tmp_path / "a.mp4", frames_per_s=10)
    video = imageio_ffmpeg.read_frames(tmp_path / "a.mp4")
    about = next(video)
    assert (about["fps"], about["codec"], about["size"]) == (10, "h264", (12, 10))
    levels = [np.frombuffer(frame, np.uint8).reshape(10, 12, 3)[:9, :11].mean() for frame in video]
    assert levels == pytest.approx([0, 100, 200], abs=3)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "cannot be started"),
        ("exit 3", "exit code 3"),
        ("cat > /dev/null; echo no codec >&2; exit 1", "no codec"),
    ],
)
def test_a_failing_ffmpeg_costs_the_mp4_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
):
    ffmpeg, out, view = tmp_path / "ffmpeg", tmp_path / "out", small_view()
    if script is not None:
        ffmpeg.write_text(f"#!/bin/sh\n{script}\n")
        ffmpeg.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    out.mkdir()
    (out / "path.mp4").write_bytes(b"of an earlier view")
    record = make_novel_views(
        view.rgb, view.depth, Pose(yaw_deg=9), nearest, out, focal_px=60.0, path=PathSettings(frames=2), notes={}
    )
    assert record.mp4 is None
    assert words in str(record.mp4_error)
    assert len(PlyData.read(out / "cloud.ply")["vertex"]) == record.cloud_points
    names = {path.name for path in out.iterdir()}
    assert names == {"view.png", "warped.png", "disocclusion.png", "path.gif", "cloud.ply", "novel_view.json"}
    assert words in json.loads((out / "novel_view.json").read_text())["mp4_error"]


def test_without_the_video_extra_there_is_no_mp4_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    view = small_view()
    made = make_novel_views(
        view.rgb, view.depth, Pose(yaw_deg=9), nearest, tmp_path, focal_px=60.0, path=PathSettings(frames=2), notes={}
    )
    assert made.mp4 is None
    assert "prefpaint-ray[video]" in json.loads((tmp_path / "novel_view.json").read_text())["mp4_error"]
    assert (tmp_path / "path.gif").is_file()


def test_the_true_disparity_brings_the_left_picture_onto_the_right_one():
    pair = load_motorcycle(4)
    assert set(pair.parts) == set(PARTS)
    hole, seen = pair.parts["hole"], pair.parts["seen"]
    assert np.array_equal(hole, pair.parts["behind"] | pair.parts["outside"])
    assert 0.03 < hole.mean() < 0.3
    rows = judge_against_truth(pair, pair.warped.rgb)
    assert sum(row[0] for row in rows["hole"]) == hole.sum()
    difference = np.square(pair.warped.rgb[seen].astype(float) - pair.truth[seen]).mean()
    assert psnr(np.array(rows["seen"])) == pytest.approx(10 * np.log10(255**2 / difference))
    assert psnr(np.array(rows["seen"])) > 22


def test_psnr_without_pixels_is_no_number():
    assert np.isnan(psnr(np.zeros((3, 2))))


def test_filling_completes_the_cloud_of_a_scene():
    figures, renderings = measure_scene(0, {"nearest": nearest}, scale=0.5)
    assert figures["nearest"].completeness > figures["without"].completeness + 0.02
    assert figures["without"].accuracy < 1e-3
    assert figures["without"].psnr_unseen is None
    assert figures["nearest"].reached > figures["without"].reached
    assert [picture.shape for picture in renderings["truth"]] == [(72, 96, 3)] * 4


def write_photograph(folder: Path) -> Path:
    view = small_view()
    Image.fromarray(view.rgb).save(folder / "photo.png")
    np.save(folder / "depth.npy", view.depth)
    return folder / "photo.png"


def test_the_command_paints_with_a_policy(tmp_path: Path, small_pipeline: Path):
    photo = write_photograph(tmp_path)
    policy = save_moved_policy(small_pipeline, tmp_path / "policy", version=3)
    options = ["--depth", tmp_path / "depth.npy", "--yaw", 12, "--frames", 3, "--policy", policy, "--samples", 2]
    done = rlhf("novel-view", photo, *options, "--set", "evaluate.num_inference_steps=2", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for name in ("view.png", "view_1.png", "path.gif", "cloud.ply"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert json.loads((tmp_path / "out" / "novel_view.json").read_text())["policy_version"] == 3
    assert (tmp_path / "out" / "view.png").read_bytes() != (tmp_path / "out" / "view_1.png").read_bytes()


def test_the_same_seed_paints_the_same_again(small_pipeline: Path):
    policy, view = load_policy(ModelConfig(path=str(small_pipeline))), small_view()
    seen = warp([view], Pose(yaw_deg=12).camera(view.camera, 4.0))
    one, same, other = (paint_with(policy, num_inference_steps=2, seed=seed)(seen, 0)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--yaw", "10"], "--depth-model"),
        (["--depth", "depth.npy", "--depth-model", "x", "--yaw", "10"], "--depth-model"),
        (["--depth", "depth.npy", "--yaw", "80"], "--yaw"),
        (["--depth", "depth.npy"], "own view"),
        (["--depth", "photo.png", "--yaw", "10"], "colours"),
        (["--depth", "depth.npy", "--yaw", "10", "--focal-px", "-3"], "--focal-px"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_2(tmp_path: Path, options: list[str], words: str):
    write_photograph(tmp_path)
    done = rlhf("novel-view", "photo.png", *options, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert words in done.stderr


def test_a_depth_map_reaches_whole_views_only_where_it_is_known():
    view = whole_view(camera_at_origin(2, 2), np.zeros((2, 2, 3), np.uint8), np.array([[1, np.nan], [0, np.inf]]))
    assert view.known.tolist() == [[True, False], [False, False]]
