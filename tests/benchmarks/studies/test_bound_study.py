"""Kinds of uncertainty judged alike."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_annotations import STUDY_CONFIG as CONFIG
from small_annotations import make_world

from benchmarks.studies.bound import (
    KINDS,
    BoundSummary,
    format_table,
    judge_uncertainty,
    risk_coverage_area,
    study_bound,
)
from rlhf.data.annotated_images import join_annotations
from rlhf.errors import UserError
from rlhf.storage.atomic_files import finite


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BoundSummary]:
    out = tmp_path_factory.mktemp("study")
    data = join_annotations(*make_world(30))
    truth = data.scores.double() - 0.1
    return out, study_bound(data, truth, CONFIG, out, resplits=2, ensemble=2)


def test_the_area_under_the_risk_coverage_curve_is_a_sum_over_the_most_certain() -> None:
    errors, uncertainty = np.array([4.0, 1.0, 2.0, 3.0]), np.array([0.9, 0.1, 0.5, 0.7])
    assert risk_coverage_area(errors, uncertainty) == pytest.approx((1 + 1.5 + 2 + 2.5) / 4)
    assert risk_coverage_area(errors, errors) < risk_coverage_area(errors, -errors)


def test_an_uncertainty_that_is_constant_orders_nothing() -> None:
    errors = np.random.default_rng(0).random(50)
    assert risk_coverage_area(errors, np.ones(50)) == pytest.approx(errors.mean())
    assert risk_coverage_area(errors[::-1], np.ones(50)) == pytest.approx(errors.mean())


def test_judging_counts_coverage_and_width_by_their_definitions() -> None:
    data = join_annotations(*make_world(4))
    uncertainty = torch.linspace(0.5, 1.5, len(data.keys), dtype=torch.float64)
    reward = data.scores.double() - 0.7 * uncertainty
    figures = judge_uncertainty(data, reward, uncertainty, {0.9: 0.69, 0.95: 0.71}, None)
    assert figures["coverage_0.9"] == 0.0
    assert figures["coverage_0.95"] == 1.0
    assert figures["width_0.95"] == pytest.approx(2 * 0.71)
    assert figures["rank_correlation"] == pytest.approx(1.0)
    assert figures["rank_correlation_noiseless"] is None


def test_a_study_has_all_kinds_and_a_table_that_names_them(study: tuple[Path, BoundSummary]) -> None:
    out, summary = study
    assert set(summary.kinds) == set(KINDS)
    assert json.loads((out / "bound_study.json").read_text()) == finite(asdict(summary))
    table = format_table(summary)
    assert all(kind in table for kind in KINDS)
    norms = [summary.kinds[kind]["coverage_0.9"].value for kind in ("proper norm", "constant")]
    assert all(0.5 < coverage <= 1 for coverage in norms)


def test_a_study_goes_on_without_repeating_a_split_and_refuses_other_settings(study: tuple[Path, BoundSummary]) -> None:
    out, summary = study
    data = join_annotations(*make_world(30))
    before = {path: path.stat().st_mtime_ns for path in out.glob("resplit-*.json")}
    again = study_bound(data, None, CONFIG, out, resplits=2, ensemble=2)
    assert finite(asdict(again)) == finite(asdict(summary))
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("resplit-*.json")}
    with pytest.raises(UserError, match="other settings"):
        study_bound(data, None, CONFIG, out, resplits=2, ensemble=3)
