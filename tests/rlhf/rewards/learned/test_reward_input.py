"""What people get wrong about the input of `rlhf reward`: one error each, with its remedy."""

from pathlib import Path
from typing import Any

import pytest
from command_line import rlhf
from small_annotations import annotation, make_world, write_annotations, write_world

from rlhf.commands.cli import app
from rlhf.data.annotated_images import join_annotations
from rlhf.data.annotators import load_annotations
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_folder import load_reward

QUICK = ("reward.feature_dim=12", "reward.epochs=2", "reward.decorrelation=1.0", "reward.ridge=30")


def reward(tmp_path: Path, annotations: list[dict[str, Any]], *overrides: str, photographs: int = 12) -> Path:
    """The command's work, in this process, on the small world with these annotations."""
    prompts, candidates, _ = make_world(photographs)
    folders = write_world(tmp_path, prompts, candidates, annotations)
    options = [word for override in (*QUICK, *overrides) for word in ("--set", override)]
    app(["reward", *folders, "--out", str(tmp_path / "reward"), *options], standalone_mode=False)
    return tmp_path / "reward"


def test_annotations_of_unknown_candidates_are_counted_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = make_world(12)[2]
    out = reward(tmp_path, [*known, annotation("stranger", 0, "a", 3.0), annotation("stranger", 1, "a", 4.0)])
    line = f"2 of {len(known) + 2} annotations are of unknown candidates; left out"
    assert capsys.readouterr().err.count(line) == 1
    assert "2 annotations of unknown candidates" in (out / "report.html").read_text().replace("</b>", "")
    load_reward(out)


def test_annotations_of_unknown_candidates_alone_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none belongs to these candidates; check that both are of one run"):
        reward(tmp_path, [annotation("stranger", index, "a", 3.0 + index) for index in range(3)])


def test_a_mark_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    outside, empty = "texture is .*, not within 0-7; mend or remove", "texture is empty; fill it in"
    for mark, message in ((7.5, outside), (-1.0, outside), (float("nan"), outside), (None, empty)):
        row = annotation("p", 0, "a", 3.0) | {"texture": mark}
        write_annotations([annotation("p", 1, "a", 3.0), row], tmp_path)
        with pytest.raises(UserError, match=rf"row 1 \(prompt p\): {message}"):
            load_annotations(tmp_path)


def test_a_candidate_judged_twice_by_one_annotator_is_named_with_both_rows(tmp_path: Path) -> None:
    rows = [annotation("p", 0, "a", 3.0), annotation("p", 0, "b", 3.0), annotation("p", 0, "a", 5.0)]
    write_annotations(rows, tmp_path)
    with pytest.raises(UserError, match=r"row 2 \(prompt p, sample 0, annotator a\) repeats row 0; remove one"):
        load_annotations(tmp_path)


def test_a_second_round_is_no_repetition(tmp_path: Path) -> None:
    rows = [annotation("p", 0, "a", mark) | {"round": turn} for turn, mark in enumerate((3.0, 5.0))]
    write_annotations(rows, tmp_path)
    assert [row["round"] for row in load_annotations(tmp_path)] == [0, 1]
    write_annotations([row | {"round": 1} for row in rows], tmp_path)
    with pytest.raises(UserError, match="repeats row 0"):
        load_annotations(tmp_path)


def test_too_few_annotations_to_calibrate_are_refused_before_training(tmp_path: Path) -> None:
    few = [row for row in make_world(4)[2] if row["sample_index"] < 3]
    with pytest.raises(UserError, match=r"cannot calibrate a coverage of 0.9; 9 are needed: annotate more"):
        reward(tmp_path, few, photographs=4)
    assert not (tmp_path / "reward" / "learning_curve.jsonl").exists()


def test_scores_that_differ_by_hole_family_alone_teach_nothing() -> None:
    prompts, candidates, annotations = make_world(4)
    for row in annotations:
        row["annotation_score"] = 3.0 if prompts[row["prompt_id"]].hole == "box" else 5.0
    with pytest.raises(UserError, match="all scores of a hole family.*use the whole scale"):
        join_annotations(prompts, candidates, annotations)


def test_a_v_that_is_not_positive_definite_names_the_ridge(tmp_path: Path) -> None:
    parts = "reward.parts=[0.6, 0.01, 0.2, 0.2]"
    with pytest.raises(UserError, match=r"V is not positive definite; raise reward\.ridge"):
        reward(tmp_path, make_world(12)[2], parts, "reward.feature_dim=40", "reward.ridge=1.0e-300")
    assert not (tmp_path / "reward" / "reward.json").exists()


def test_a_training_that_diverges_names_the_learning_rate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged in epoch \d+; lower reward\.learning_rate"):
        reward(tmp_path, make_world(12)[2], "reward.learning_rate=1.0e+30")


def test_bad_input_ends_with_code_2_and_writes_nothing(tmp_path: Path) -> None:
    rows = make_world(4)[2]
    folders = write_world(tmp_path, *make_world(4)[:2], [*rows, rows[5]])
    (tmp_path / "reward").mkdir()
    done = rlhf("reward", *folders, "--out", tmp_path / "reward")
    assert done.returncode == 2
    assert "repeats row 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "reward").iterdir()) == []
