"""Active choice against random: the same beginning and number of annotations, whole prompts, paired differences."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from command_line import run_study
from small_annotations import make_world, write_world

from benchmarks.studies.selection import (
    LEARNING,
    SELECTIONS,
    format_table,
    learn_anew,
    order_prompts,
    rows_of,
    study_selection,
    summarise,
    take_in,
)
from benchmarks.studies.selection_records import RewardPoint, SelectionSummary
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, join_annotations
from rlhf.errors import UserError
from rlhf.storage.atomic_files import finite

CONFIG = RewardConfig(feature_dim=12, epochs=2, micro_batch_size=64, decorrelation=1.0)
PHOTOGRAPHS = 60
PORTION = 0.3


@pytest.fixture(scope="module")
def data() -> AnnotatedImages:
    return join_annotations(*make_world(PHOTOGRAPHS))


@pytest.fixture(scope="module")
def study(data: AnnotatedImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SelectionSummary]:
    out = tmp_path_factory.mktemp("study")
    return out, study_selection(data, data.scores.double() - 0.1, CONFIG, out, seeds=2, portion=PORTION)


def test_all_begin_alike_and_are_given_whole_prompts_up_to_the_same_number(
    study: tuple[Path, SelectionSummary],
) -> None:
    record = json.loads((study[0] / "resplit-00.json").read_text())
    curves = [record[f"{learning} {selection}"] for learning in LEARNING for selection in SELECTIONS]
    assert all(curve[0] == curves[0][0] for curve in curves)
    # 30 % of 42 photographs of ten samples are twelve whole prompts, of 14 annotations each: four are scored twice.
    expected = [14 * 12 * number for number in (1, 2, 3)]
    assert all([point["annotations"] for point in curve] == expected for curve in curves)


def test_the_study_writes_a_table_a_figure_and_its_differences(study: tuple[Path, SelectionSummary]) -> None:
    out, summary = study
    assert json.loads((out / "selection_study.json").read_text()) == finite(asdict(summary))
    assert (out / "selection_study.png").read_bytes().startswith(b"\x89PNG")
    last, curves = summary.differences["refit uncertain"][-1], summary.curves
    means = [curves[f"refit {selection}"][-1].squared_error.value for selection in ("uncertain", "random")]
    assert last.squared_error.value == pytest.approx(means[0] - means[1])
    table = format_table(summary)
    assert all(word in table for word in (*LEARNING, "squared error noiseless", "pair accuracy", "2 splits"))


def test_the_study_goes_on_and_refuses_other_settings(
    study: tuple[Path, SelectionSummary], data: AnnotatedImages
) -> None:
    out, summary = study
    before = {path: path.stat().st_mtime_ns for path in out.glob("resplit-*.json")}
    again = study_selection(data, None, CONFIG, out, seeds=2, portion=PORTION)
    assert finite(asdict(again)) == finite(asdict(summary))
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("resplit-*.json")}
    with pytest.raises(UserError, match="other settings"):
        study_selection(data, None, CONFIG, out, seeds=2, portion=0.2)


def test_a_difference_is_paired_within_splits() -> None:
    records = [
        {
            f"{learning} {selection}": [
                RewardPoint(annotations=10, squared_error=base + gain, absolute_error=0.0, pair_accuracy=None)
            ]
            * 3
            for learning in LEARNING
            for selection, gain in zip(SELECTIONS, (-0.1 + 0.01 * (-1) ** split, 0.0), strict=True)
        }
        for split, base in enumerate((1.0, 3.0, 9.0, 2.0, 5.0, 7.0))
    ]
    difference = summarise(records).differences["refit uncertain"][0].squared_error
    assert difference.value == pytest.approx(-0.1)
    assert -0.12 < difference.low < difference.high < -0.08, "splits differ by far more than that from one another"


def test_taking_prompts_in_leaves_the_features_and_those_that_calibrate_and_report_out(data: AnnotatedImages) -> None:
    names = list(dict.fromkeys(name for name, _ in data.keys))
    learner = learn_anew(data, names[:20], CONFIG, 0)
    more = take_in(learner, data, names[20:30])
    assert more.prompts == set(names[:30])
    assert more.model.network is learner.model.network
    z = torch.nn.functional.normalize(torch.randn(5, CONFIG.feature_dim + 1, dtype=torch.float64))
    assert (more.model.head.uncertainty(z) < learner.model.head.uncertainty(z)).all()
    calibrating = [name for name in names if f"{name}.png" in learner.memory.calibration.photographs]
    assert torch.equal(take_in(learner, data, calibrating).model.head.weight, learner.model.head.weight)


def test_all_orders_hold_every_prompt_once(data: AnnotatedImages) -> None:
    names = list(dict.fromkeys(name for name, _ in data.keys))
    learner, left = learn_anew(data, names[:20], CONFIG, 0), names[20:]
    orders = [order_prompts(learner, data, left, selection, 0) for selection in SELECTIONS]
    assert all(sorted(order) == sorted(left) for order in orders)
    assert len({tuple(order) for order in orders}) == len(SELECTIONS)
    assert {name for name, _ in rows_of(data, orders[0][:3]).keys} == set(orders[0][:3])


@pytest.mark.slow
def test_the_command_says_that_annotators_are_simulated(tmp_path: Path) -> None:
    folders = write_world(tmp_path, *make_world(40))
    words = [f"reward.{name}={value}" for name, value in CONFIG.model_dump(exclude_defaults=True).items()]
    options = [word for setting in words for word in ("--set", setting)]
    done = run_study("selection", *folders, "--out", tmp_path / "out", "--seeds", 1, "--portion", 0.33, *options)
    assert done.returncode == 0, done.stderr
    assert "all annotators simulated" in done.stdout
