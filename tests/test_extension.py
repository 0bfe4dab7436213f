"""Photographs that grow: bands, known pixels, the GIF, and what is measured of each step, in closed form."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from small_parts import save_moved_policy, small_config
from test_cli import rlhf
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.config import EvaluateConfig, RunConfig
from rlhf.errors import UserError
from rlhf.extension import MAX_STEPS, UNPAINTED, count_steps, extend, frame, save_gif
from rlhf.extension_figures import format_table
from rlhf.extension_measures import COLUMNS, MEASURES, measure_band, summarise_rows
from rlhf.extension_study import ROWS, ExtensionPlan, study_extension, to_csv
from rlhf.growth import Band, Margins, band_hole, fill_by_padding, fill_by_policy, grow, plan_bands
from rlhf.policy import load_policy
from rlhf.tables import read_table

HEIGHT, WIDTH = 24, 120


def quick(pipeline: Path) -> RunConfig:
    return small_config(pipeline).model_copy(update={"evaluate": EvaluateConfig(num_inference_steps=2)})


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth, and nowhere as grey as what is not painted."""
    rng = np.random.default_rng(seed)
    pixels = Image.fromarray(rng.integers(0, 100, (4, 12, 3), dtype=np.uint8))
    return np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC)) // 2 + np.uint8(10 * (seed % 3))


def run(*arguments: object) -> str:
    """What a command prints, in this process: torch is there already."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(7):
        Image.fromarray(picture(seed)).save(folder / f"{seed}.png")
    return folder


def plan_of(folder: Path, **changed: object) -> ExtensionPlan:
    settings = {"photographs": 7, "growth": 3.0, "steps_per_side": 3, "height_px": None, "bootstrap": 50} | changed
    return ExtensionPlan(images=folder, **settings)


def perfect(folder: Path):
    """Knows the rest of every photograph."""

    def for_photograph(name: str):
        truth = np.asarray(Image.open(folder / name))

        def fill(pixels: np.ndarray, hole: np.ndarray, band: Band) -> np.ndarray:
            left, top, right, bottom = band.extent
            return np.where(hole[..., None], truth[top:bottom, left:right], pixels)

        return fill

    return for_photograph


def contestants_of(folder: Path) -> dict:
    return {"perfect": perfect(folder), "edge": lambda name: fill_by_padding("edge")}


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


def test_the_truth_itself_has_no_seam_no_drift_and_no_finite_psnr() -> None:
    truth = picture(2)
    band = plan_bands((40, HEIGHT), Margins(left=40, right=40), 2)[0]
    figures = measure_band(truth, truth, band)
    assert figures["psnr_db"] is None
    assert figures["ssim"] == pytest.approx(1)
    assert (figures["seam"], figures["colour_drift"]) == (0, 0)
    assert figures["sharpness"] == figures["sharpness_true"]
    assert figures["jump"] == figures["jump_true"]
    assert figures["gold"] == pytest.approx(1)


def test_a_lighter_band_has_the_psnr_drift_and_seam_of_its_shift() -> None:
    truth = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    band = plan_bands((40, HEIGHT), Margins(left=40, right=40), 2)[0]
    lighter = truth.copy()
    lighter[:, band.box[0] : band.box[2]] += 10
    figures = measure_band(lighter, truth, band)
    assert figures["psnr_db"] == pytest.approx(20 * np.log10(255 / 10))
    assert figures["seam"] == pytest.approx(10)
    assert (figures["jump"], figures["jump_true"]) == pytest.approx((10, 0))
    assert 3 < figures["colour_drift"] < 5
    assert (figures["sharpness_true"], figures["ssim"] < 1) == (0, True)


def test_what_cannot_be_computed_is_left_out_and_never_a_zero() -> None:
    figures = dict.fromkeys(COLUMNS, 1.0)
    rows = []
    for photograph in "abc":
        for step in (1, 2):
            for contestant, psnr in (("one", None), ("two", 10.0 * step if photograph != "c" else None)):
                place = {"photograph": photograph, "contestant": contestant, "step": step, "side": "left"}
                rows.append(place | figures | {"psnr_db": psnr, "jump_true": 0.0, "sharpness": 2.0 * step})
    summary = summarise_rows(rows, resamples=20)
    one, two = summary["measures"]["psnr_db"].values()
    assert (one["all"], one["steps"], one["left_out"]) == (None, [None, None], 6)
    assert two["all"]["value"] == 15
    assert (two["all"]["clusters"], two["left_out"]) == (2, 2)
    assert two["drift"]["value"] == 10
    assert summary["differences"]["psnr_db"]["two"]["all"] is None
    assert summary["measures"]["jump_ratio"]["one"]["all"] is None
    assert summary["measures"]["sharpness_ratio"]["one"]["drift"]["value"] == 2
    shown = summary | {"steps_per_side": 2, "reference": "one", "photographs": 3, "skipped": 0}
    table = format_table(shown | {"known_pixels_differ": 0})
    assert "left out: 6 bands" in table
    assert ",,1.0" in to_csv([{name: rows[0].get(name) for name in ROWS.names}])


def test_differences_are_paired_by_photograph_and_side() -> None:
    rows = [
        {"photograph": p, "contestant": c, "step": 1, "side": side} | dict.fromkeys(COLUMNS, level + gain)
        for p, level in (("a", 1.0), ("b", 50.0))
        for side in ("left", "right")
        for c, gain in (("base", 0.0), ("aligned", 2.0))
    ]
    difference = summarise_rows(rows, resamples=50)["differences"]["seam"]["aligned"]["all"]
    assert (difference["value"], difference["low"], difference["high"]) == pytest.approx((2, 2, 2))


def test_the_study_judges_the_perfect_and_goes_on_to_the_same_end(photographs: Path, tmp_path: Path) -> None:
    opened: list[int] = []

    def open_all() -> dict:
        opened.append(1)
        return contestants_of(photographs)

    out, again = tmp_path / "out", tmp_path / "again"
    summary = study_extension(plan_of(photographs), open_all, out, {"seed": 0})
    assert summary["known_pixels_differ"] == 0
    assert summary["measures"]["seam"]["perfect"]["all"]["value"] == 0
    assert summary["measures"]["psnr_db"]["perfect"]["left_out"] == 7 * 3 * 2
    assert summary["differences"]["gold"]["edge"]["all"]["high"] < 0
    rows = read_table(out / "extension_study.parquet", ROWS)
    assert len(rows) == 7 * 2 * 3 * 2
    assert (out / "extension_study.csv").read_text().count("\n") == len(rows) + 1
    one = next((out / "photographs").glob("*-0"))
    assert np.array_equal(Image.open(one / "perfect.png"), picture(0))
    assert Image.open(out / "pictures.png").width > 4 * 240
    study_extension(plan_of(photographs), open_all, again, {"seed": 0})
    for path in (again / "extension_study.json", *list((again / "photographs").glob("*/record.json"))[:3]):
        path.unlink()
    assert study_extension(plan_of(photographs), open_all, again, {"seed": 0}) == summary
    for name in ("extension_study.json", "extension_study.csv", "pictures.png"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    with pytest.raises(UserError, match="other settings"):
        study_extension(plan_of(photographs, growth=2.0), open_all, again, {"seed": 0})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"growth": 1.0}, "--growth"),
        ({"growth": float("nan")}, "--growth"),
        ({"photographs": 5}, "--photographs 5"),
        ({"steps_per_side": 0}, "--steps-per-side"),
        ({"height_px": -1}, "--height-px"),
        ({"steps_per_side": 30}, "too narrow"),
        ({"growth": 60.0}, "too narrow"),
        ({"height_px": 100}, "24 pixels high"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_before_a_model_is_opened(
    photographs: Path, tmp_path: Path, changed: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        study_extension(plan_of(photographs, **changed), lambda: pytest.fail("opened"), tmp_path / "out", {})


def test_unreadable_photographs_are_left_out_and_too_few_are_refused(photographs: Path, tmp_path: Path) -> None:
    (photographs / "3.png").write_bytes(b"no picture")
    plan, out = plan_of(photographs, height_px=12, steps_per_side=1), tmp_path / "out"
    summary = study_extension(plan, lambda: {"edge": lambda name: fill_by_padding("edge")}, out, {})
    assert (summary["photographs"], summary["skipped"]) == (6, 1)
    assert json.loads((out / "skipped.json").read_text())[0]["file"] == "3.png"
    (photographs / "4.png").unlink()
    with pytest.raises(UserError, match="too few for an interval"):
        study_extension(plan_of(photographs), lambda: pytest.fail("opened"), out, {})


def test_the_commands_extend_and_judge_a_policy(small_pipeline: Path, photographs: Path, tmp_path: Path) -> None:
    policy = save_moved_policy(small_pipeline, tmp_path / "policy-000002", version=2)
    settings = ["--set", "evaluate.num_inference_steps=2", "--set", "evaluate.bootstrap=50"]
    model = ["--set", f"model.path={small_pipeline}", *settings]
    sizes = ["--photographs", 6, "--steps-per-side", 1]
    done = run("study", "extension", "--images", photographs, "--run", policy, "--out", tmp_path / "s", *model, *sizes)
    assert all(word in done for word in ("base", "aligned", "mirror", *(m.label for m in MEASURES.values())))
    summary = json.loads((tmp_path / "s" / "extension_study.json").read_text())
    assert (summary["known_pixels_differ"], summary["aligned"][:24]) == (0, "policy-000002, version 2")
    out = tmp_path / "extended"
    sides = ["--left", 20, "--top", 9, "--samples", 2, "--seed", 5, "--out", out]
    run("extend", photographs / "0.png", "--model", policy, *settings, *sides)
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
        (None, {}, "readable image"),
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
