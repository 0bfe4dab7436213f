"""What is measured of each step, in closed form; a study of it goes on, and refuses what makes no sense."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_photographs import HEIGHT, WIDTH, picture, write_photographs

from rlhf.errors import UserError
from rlhf.evaluation.tasks.extension import ROWS, BandRow, ExtensionPlan, study_extension, tabulate
from rlhf.evaluation.tasks.extension_figures import format_table
from rlhf.evaluation.tasks.extension_measures import BandFigures, measure_band, summarise_rows
from rlhf.evaluation.tasks.extension_summary import ExtensionSummary
from rlhf.storage.tables import read_table
from rlhf.views.growth import Band, Margins, fill_by_padding, plan_bands


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs")


def plan_of(folder: Path, **changed: object) -> ExtensionPlan:
    settings = {"photographs": 7, "growth": 2.0, "steps_per_side": 2, "height_px": None} | changed
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


def row(photograph: str, contestant: str, step: int, side: str = "left", **figures: float | None) -> BandRow:
    """A band whose figures are 1 unless given."""
    ones = {field.name: 1.0 for field in fields(BandFigures)}
    place = {"photograph": photograph, "contestant": contestant, "step": step, "side": side}
    return BandRow(**place, band_px=8, known_pixels_differ=0, **(ones | figures))


def contestants_of(folder: Path) -> dict:
    return {"perfect": perfect(folder), "edge": lambda name: fill_by_padding("edge")}


def test_the_truth_itself_has_no_seam_no_drift_and_no_finite_psnr() -> None:
    truth = picture(2)
    band = plan_bands((40, HEIGHT), Margins(left=40, right=40), 2)[0]
    figures = measure_band(truth, truth, band)
    assert figures.psnr_db is None
    assert figures.ssim == pytest.approx(1)
    assert (figures.seam, figures.colour_drift) == (0, 0)
    assert figures.sharpness == figures.sharpness_true
    assert figures.jump == figures.jump_true
    assert figures.likeness == pytest.approx(1)


def test_a_lighter_band_has_the_psnr_drift_and_seam_of_its_shift() -> None:
    truth = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    band = plan_bands((40, HEIGHT), Margins(left=40, right=40), 2)[0]
    lighter = truth.copy()
    lighter[:, band.box[0] : band.box[2]] += 10
    figures = measure_band(lighter, truth, band)
    assert figures.psnr_db == pytest.approx(20 * np.log10(255 / 10))
    assert figures.seam == pytest.approx(10)
    assert (figures.jump, figures.jump_true) == pytest.approx((10, 0))
    assert 3 < figures.colour_drift < 5
    assert (figures.sharpness_true, figures.ssim < 1) == (0, True)


def test_what_cannot_be_computed_is_left_out_and_never_a_zero() -> None:
    rows = [
        row(photograph, contestant, step, psnr_db=psnr, jump_true=0.0, sharpness=2.0 * step)
        for photograph in "abc"
        for step in (1, 2)
        for contestant, psnr in (("one", None), ("two", 10.0 * step if photograph != "c" else None))
    ]
    summary = summarise_rows(tabulate(rows))
    one, two = summary.measures["psnr_db"].values()
    assert (one.all, one.steps, one.left_out) == (None, [None, None], 6)
    assert two.all.value == 15
    assert (two.all.clusters, two.left_out) == (2, 2)
    assert two.drift.value == 10
    assert summary.differences["psnr_db"]["two"].all is None
    assert summary.measures["jump_ratio"]["one"].all is None
    assert summary.measures["sharpness_ratio"]["one"].drift.value == 2
    size = {"growth": 3.0, "steps_per_side": 2, "height_px": None, "photographs": 3, "skipped": 0}
    table = format_table(ExtensionSummary(**vars(summary), **size, known_pixels_differ=0, reference="one"))
    assert "cannot be computed: one 6, two 2" in table
    assert ",,1.0" in tabulate(rows[:1]).to_csv()


def test_differences_are_paired_by_photograph_and_side() -> None:
    names = [field.name for field in fields(BandFigures)]
    rows = [
        row(p, c, 1, side, **dict.fromkeys(names, level + gain))
        for p, level in (("a", 1.0), ("b", 50.0), ("c", 7.0), ("d", -3.0), ("e", 0.5), ("f", 9.0))
        for side in ("left", "right")
        for c, gain in (("base", 0.0), ("aligned", 2.0 if p < "f" else 3.2))
    ]
    difference = summarise_rows(tabulate(rows)).differences["seam"]["aligned"].all
    assert difference.value == pytest.approx(2.2)
    assert 1.6 < difference.low < 2.2 < difference.high < 5, "however far apart the photographs themselves lie"


def test_the_study_judges_the_perfect_and_goes_on_to_the_same_end(photographs: Path, tmp_path: Path) -> None:
    opened: list[int] = []

    def open_all() -> dict:
        opened.append(1)
        return contestants_of(photographs)

    out, again = tmp_path / "out", tmp_path / "again"
    summary = study_extension(plan_of(photographs), open_all, out, {"seed": 0})
    assert summary.known_pixels_differ == 0
    assert summary.measures["seam"]["perfect"].all.value == 0
    assert summary.measures["psnr_db"]["perfect"].left_out == 7 * 2 * 2
    assert summary.differences["likeness"]["edge"].all.high < 0
    rows = read_table(out / "extension_study.parquet", ROWS, may_be_empty=ROWS.names)
    assert len(rows) == 7 * 2 * 2 * 2
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
        study_extension(plan_of(photographs, growth=3.0), open_all, again, {"seed": 0})


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
    assert (summary.photographs, summary.skipped) == (6, 1)
    assert json.loads((out / "skipped.json").read_text())[0]["file"] == "3.png"
    (photographs / "4.png").unlink()
    with pytest.raises(UserError, match="too few for an interval"):
        study_extension(plan_of(photographs), lambda: pytest.fail("opened"), out, {})
