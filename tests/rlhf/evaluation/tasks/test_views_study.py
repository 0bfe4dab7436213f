"""The study of new views: figures, their intervals, and going on after an interruption."""

from pathlib import Path

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.tasks.stereo_pair import REGIONS
from rlhf.evaluation.tasks.views import study_views, summarise_motorcycle, summarise_scenes
from rlhf.evaluation.tasks.views_figures import draw_figure, format_table, tabulate
from rlhf.evaluation.tasks.views_records import CloudFigures
from rlhf.views.depth_filling import fill_with_nearest_background
from rlhf.views.novel_view import Fill
from rlhf.views.warping import Warped

COUNT = REGIONS[0] * REGIONS[1]


def shade(level: int) -> Fill:
    def fill(warped: Warped, _: int) -> list[np.ndarray]:
        nearest = fill_with_nearest_background(warped)
        return [np.where(warped.hole[..., None], nearest // 2 + level, nearest).astype(np.uint8)]

    return fill


def rows(pixels: int, error: float, ssim: float) -> list[list[float]]:
    return [[pixels, 3 * pixels * error, pixels * ssim]] * COUNT


def test_figures_of_equal_regions_have_no_interval():
    records = [{"base": {"hole": rows(4, 100.0, 0.5)}, "aligned": {"hole": rows(4, 50.0, 0.6)}}] * 2
    gain = summarise_motorcycle(records)["hole"].aligned_over_base
    assert gain.value == pytest.approx(10 * np.log10(2))
    assert np.isnan([gain.low, gain.high]).all()
    assert gain.ssim.value == pytest.approx(0.1)
    assert gain.regions == COUNT


def test_a_part_without_pixels_is_left_out():
    records = [{name: {"hole": rows(4, 1.0, 1.0), "outside": rows(0, 0.0, 0.0)} for name in ("base", "aligned")}]
    assert set(summarise_motorcycle(records)) == {"hole"}


def test_scenes_that_cannot_be_measured_are_no_zeros():
    names = ("completeness", "accuracy", "precision", "added_accuracy", "added_precision", "reached", "psnr")
    fillers = ("without", "base", "aligned", "nearest background", "biharmonic")
    ones = dict.fromkeys(names, 1.0)
    figures = CloudFigures(points=1, unseen_pixels=0, psnr_unseen=None, **ones)
    record = dict.fromkeys(fillers, figures)
    summary = summarise_scenes([record, record])
    assert summary.means["aligned"]["psnr_unseen"] is None
    assert summary.means["aligned"]["psnr"].value == 1.0
    assert summary.differences["aligned over base"]["psnr"].value == 0.0


def test_the_study_goes_on_and_refuses_other_settings(tmp_path: Path):
    asked = []

    def open_fill(name: str, seed: int) -> Fill:
        asked.append((name, seed))
        return shade({"base": 20, "aligned": 60}[name])

    options = {"scenes": 1, "shrinks": (8,), "scale": 0.25}
    study_views(open_fill, {"model": "m"}, tmp_path, seeds=1, **options)
    before = list(asked)
    summary = study_views(open_fill, {"model": "m"}, tmp_path, seeds=2, **options)
    assert asked[len(before) :] == [("base", 1), ("aligned", 1)]
    table = format_table(summary)
    for words in ("aligned over base", "biharmonic", "completeness", "one scene"):
        assert words in table
    assert list(tabulate(summary).columns) == ["test", "part", "filler", "figure", "value", "low", "high"]
    draw_figure(summary, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert (tmp_path / "motorcycle-8" / "sheet.png").is_file()
    assert (tmp_path / "scenes" / "scene-00.png").is_file()
    with pytest.raises(UserError, match="other settings"):
        study_views(open_fill, {"model": "other"}, tmp_path, seeds=1, **options)
