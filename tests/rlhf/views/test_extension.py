"""Photographs that grow: bands, known pixels, the GIF; what cannot be extended."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import rlhf, run_study
from PIL import Image, ImageSequence
from small_parts import save_moved_policy, small_config
from small_photographs import picture, write_photographs

from rlhf.config.run_config import EvaluateConfig, RunConfig
from rlhf.diffusion.policy import load_policy
from rlhf.errors import UserError
from rlhf.evaluation.tasks.extension_measures import STEP_MEASURES
from rlhf.views.extension import MAX_STEPS, UNPAINTED, count_steps, extend, frame, save_gif
from rlhf.views.growth import Band, Margins, band_hole, fill_by_padding, fill_by_policy, grow, plan_bands


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs")


def quick(pipeline: Path) -> RunConfig:
    return small_config(pipeline).model_copy(update={"evaluate": EvaluateConfig(num_inference_steps=2)})


@pytest.mark.parametrize(
    ("margins", "steps"),
    [(Margins(left=10, right=7), 3), (Margins(left=1, top=9, right=4, bottom=2), 4), (Margins(bottom=5), 1)],
)
def test_bands_tile_what_is_added_and_each_ends_its_extent(margins: Margins, steps: int) -> None:
    size = (20, 11)
    bands = plan_bands(size, margins, steps)
    width, height = margins.enlarge(size)
    painted = np.zeros((height, width), int)
    painted[margins.top : margins.top + 11, margins.left : margins.left + 20] += 1
    for band in bands:
        left, top, right, bottom = band.box
        painted[top:bottom, left:right] += 1
        left, top, right, bottom = band.extent
        assert (painted[top:bottom, left:right] == 1).all()
        assert painted.sum() == (right - left) * (bottom - top)
        assert band_hole(band).sum() == (band.box[2] - band.box[0]) * (band.box[3] - band.box[1])
    assert (painted == 1).all()
    assert bands[-1].step == steps


def test_known_pixels_and_earlier_bands_stay_whatever_a_fill_answers() -> None:
    pixels, margins = picture(0, 20, 30), Margins(left=8, right=8, top=4)

    def meddle(part: np.ndarray, hole: np.ndarray, band: Band) -> np.ndarray:
        return np.full_like(part, 200 + band.step)

    bands = plan_bands((30, 20), margins, 2)
    done = [(p.band, p.extended.copy(), p.known_pixels_differ) for p in grow(pixels, margins, bands, meddle)]
    _, extended, _ = done[-1]
    assert np.array_equal(extended[4:, 8:38], pixels)
    for band, _, _ in done:
        left, top, right, bottom = band.box
        assert (extended[top:bottom, left:right] == 200 + band.step).all()
    assert done[0][2] == 20 * 30


@pytest.mark.parametrize("margins", [Margins(left=33, right=5, top=7), Margins(bottom=40)])
def test_a_policy_extends_to_all_sides_and_to_the_same_picture_again(small_pipeline: Path, margins: Margins) -> None:
    policy, pixels = load_policy(small_config(small_pipeline).model), picture(1, 30, 41)
    bands = plan_bands((41, 30), margins, 2)
    ends = []
    for _ in range(2):
        *_, last = grow(pixels, margins, bands, fill_by_policy(policy, num_inference_steps=2, seed_key=("test",)))
        ends.append(last.extended)
        assert last.known_pixels_differ == 0
    assert np.array_equal(*ends)
    known = np.zeros(ends[0].shape[:2], bool)
    known[margins.top : margins.top + 30, margins.left : margins.left + 41] = True
    assert np.array_equal(ends[0][known].reshape(pixels.shape), pixels)
    assert ends[0][~known].any(axis=1).mean() > 0.9


def test_padding_draws_the_border_out_or_mirrors_it() -> None:
    pixels = np.arange(4, dtype=np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2)
    for mode, expected in (("edge", [0, 0, 0, 1, 2, 3, 3, 3]), ("symmetric", [1, 0, 0, 1, 2, 3, 3, 2])):
        margins = Margins(left=2, right=2)
        *_, last = grow(pixels, margins, plan_bands((4, 3), margins, 1), fill_by_padding(mode))
        assert last.extended[1, :, 0].tolist() == expected


def test_the_commands_extend_and_judge_a_policy(small_pipeline: Path, photographs: Path, tmp_path: Path) -> None:
    policy = save_moved_policy(small_pipeline, tmp_path / "policy-000002", version=2)
    settings = ["--set", "evaluate.num_inference_steps=2"]
    model = ["--set", f"model.path={small_pipeline}", *settings]
    sizes = ["--photographs", 6, "--steps-per-side", 1]
    judged = run_study("extension", "--images", photographs, "--run", policy, "--out", tmp_path / "s", *model, *sizes)
    assert judged.returncode == 0, judged.stderr
    assert all(
        word in judged.stdout for word in ("base", "aligned", "mirror", *(m.label for m in STEP_MEASURES.values()))
    )
    summary = json.loads((tmp_path / "s" / "extension_study.json").read_text())
    assert (summary["known_pixels_differ"], summary["aligned"][:24]) == (0, "policy-000002, version 2")
    out = tmp_path / "extended"
    sides = ["--left", 20, "--top", 9, "--samples", 2, "--seed", 5, "--out", out]
    done = rlhf("extend", photographs / "0.png", "--model", policy, *settings, *sides)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "extension.json").read_text())
    assert (record["seed"], record["policy_version"], record["known_pixels_differ"]) == (5, 2, 0)
    assert record["pictures"] == ["extended-0.png", "extended-1.png"]
    one, two = (np.asarray(Image.open(out / name)) for name in record["pictures"])
    assert np.array_equal(one[9:, 20:], picture(0))
    assert np.array_equal(two[9:, 20:], picture(0))
    assert not np.array_equal(one, two)


def test_the_gif_grows_monotonically_from_the_photograph_to_the_end(small_pipeline: Path, tmp_path: Path) -> None:
    pixels = picture(4, 40, 60)
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).rotate(90, expand=True).save(file, quality=100, exif=exif)
    (picture_path,) = extend(file, Margins(left=30, right=10), tmp_path / "out", quick(small_pipeline), step_px=10)
    assert Image.open(picture_path).size == (100, 40)
    gif = Image.open(tmp_path / "out" / "growth.gif")
    frames = [np.asarray(f.convert("RGB")).astype(int) for f in ImageSequence.Iterator(gif)]
    widths = [int((np.abs(f - UNPAINTED).max(axis=2) > 8).any(axis=0).sum()) for f in frames]
    steps = json.loads((tmp_path / "out" / "extension.json").read_text())["steps"]
    assert [step["width_px"] for step in steps] == widths[1:] == [73, 86, 100]
    assert widths[0] == 60


def test_frames_are_small_and_what_stands_still_costs_little(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 1200, 3), dtype=np.uint8)
    frames = [frame(noise, (600 - 60 * n, 0, 600 + 60 * n, 300)) for n in range(1, 11)]
    assert frames[0].size == (480, 120)
    save_gif(frames, tmp_path / "all.gif")
    save_gif(frames[-1:], tmp_path / "last.gif")
    sizes = [(tmp_path / name).stat().st_size for name in ("all.gif", "last.gif")]
    assert sizes[0] < 2 * sizes[1]


@pytest.mark.parametrize(
    ("margins", "step_px", "words"),
    [
        (Margins(), None, "nothing to extend"),
        (Margins(left=-5, right=9), None, "--left -5"),
        (Margins(top=10**9), None, "pixels; add fewer"),
        (Margins(right=9), 0, "--step 0"),
        (Margins(right=MAX_STEPS + 1), 1, "raise --step"),
    ],
)
def test_margins_that_make_no_sense_are_refused(margins: Margins, step_px: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        count_steps((64, 48), margins, step_px)


def test_by_default_there_are_four_steps_unless_they_were_thin_or_wide() -> None:
    counted = [count_steps((500, 400), Margins(right=n), None) for n in (1, 16, 40, 128, 400, 1000)]
    assert counted == [1, 1, 3, 4, 4, 10]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, {}, "cannot be read"),
        (b"\x89PNG no picture", {}, "replace or remove"),
        (picture(0), {"model": Path("nowhere")}, "nowhere"),
        (picture(0), {"samples": 0}, "samples"),
        (picture(0)[:5], {}, "too small"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, content: object, options: dict, words: str) -> None:
    file = tmp_path / "photograph.png"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, np.ndarray):
        Image.fromarray(content).save(file)
    with pytest.raises(UserError, match=words):
        extend(file, Margins(right=3), tmp_path / "out", RunConfig(), **options)
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line_and_exit_code_2(photographs: Path, tmp_path: Path) -> None:
    done = rlhf("extend", photographs / "0.png", "--right", -3, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--right -3 is negative" in done.stderr
