"""Finished runs compared: on the same prompts and noise, over the base and over one another."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import run_study

from benchmarks.studies.runs import format_study, study_runs
from rlhf.errors import UserError
from rlhf.storage.atomic_files import finite
from rlhf.storage.tables import EVALUATION, image_cell, write_table

PROMPTS, SAMPLES = 12, 2


def write_rounds(folder: Path, gain: float, *, rounds: int = 1, annotations: int = 12, base: float = 0.5) -> Path:
    """Finished rounds whose last policy is better than the base by `gain` on all samples but each prompt's first."""
    lines = []
    for number in range(1, rounds + 1):
        policy = str(folder / f"round-{number}" / "align" / f"policy-{30 // rounds:06d}")
        annotated = {"annotated_candidates": annotations // rounds, "annotations": annotations // rounds}
        lines.append({"round": number, "policy": policy, "is_simulated": True} | annotated)
        (folder / f"round-{number}").mkdir(parents=True)
    rows = []
    for prompt in range(PROMPTS):
        for sample in range(SAMPLES):
            for policy, gold in (("base", base), ("aligned", base + gain * (sample > 0))):
                row = dict.fromkeys(EVALUATION.names, 0.0) | {"hole": "box", "image": image_cell(b"x", "x.png")}
                row |= {"prompt_id": f"p{prompt}", "sample_index": sample, "photograph": f"photo{prompt // 2}.png"}
                rows.append(row | {"policy": policy, "gold": gold + 0.01 * prompt})
    write_table(rows, EVALUATION, folder / f"round-{rounds}" / "evaluation" / "samples.parquet")
    (folder / "rounds.json").write_text(json.dumps(lines))
    return folder


def test_the_better_policy_wins_by_its_share_of_the_samples(tmp_path: Path) -> None:
    three, one = write_rounds(tmp_path / "three", 0.2, rounds=3), write_rounds(tmp_path / "one", 0.1)
    summary = study_runs([("three", three), ("one", one)], tmp_path / "out")
    over = summary.over_others["one"]
    assert over.win_rate.value == pytest.approx(0.75), "half of the samples tie"
    assert over.gold_gain.value == pytest.approx(0.05)
    assert over.gold_gain.clusters == PROMPTS // 2, "prompts of one photograph are one cluster"
    assert over.is_equal_effort
    assert summary.over_base["three"].gold_gain.value == pytest.approx(0.1)
    assert asdict(summary.runs["three"][0]) | {"folder": ""} == {
        "folder": "",
        "rounds": 3,
        "annotated_candidates": 12,
        "annotations": 12,
        "is_simulated": True,
        "updates": 30,
    }
    assert json.loads((tmp_path / "out" / "runs_study.json").read_text()) == finite(asdict(summary))


def test_several_seeds_are_paired_in_order(tmp_path: Path) -> None:
    bases = (0.3, 0.6)
    named = [
        (name, write_rounds(tmp_path / f"{name}{seed}", gain * (1 + seed), base=base))
        for name, gain in (("a", 0.2), ("b", 0.1))
        for seed, base in enumerate(bases)
    ]
    over = study_runs(named, tmp_path / "out").over_others["b"]
    assert [pair.gold_gain.value for pair in over.pairs] == pytest.approx([0.05, 0.1])
    assert over.gold_gain.value == pytest.approx(0.075)
    assert over.gold_gain.clusters == PROMPTS // 2, "the same photographs, whatever the seed"


def test_unequal_numbers_of_annotations_are_said(tmp_path: Path) -> None:
    named = [("a", write_rounds(tmp_path / "a", 0.2)), ("b", write_rounds(tmp_path / "b", 0.1, annotations=6))]
    assert "numbers of annotations or updates differ" in format_study(study_runs(named, tmp_path / "out"))


def test_other_noise_an_unfinished_round_and_a_missing_partner_are_refused(tmp_path: Path) -> None:
    a, b = write_rounds(tmp_path / "a", 0.2), write_rounds(tmp_path / "b", 0.1, base=0.51)
    with pytest.raises(UserError, match="other prompts or noise"):
        study_runs([("a", a), ("b", b)], tmp_path / "out")
    with pytest.raises(UserError, match="as many folders"):
        study_runs([("a", a), ("b", b), ("b", b)], tmp_path / "out")
    with pytest.raises(UserError, match="nothing to compare"):
        study_runs([("a", a)], tmp_path / "out")
    for damaged in ("garbage", "[]", "{}", '[{"round": 1}]'):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / "rounds.json").write_text(damaged)
        with pytest.raises(UserError, match=r"c/rounds\.json: .*`rlhf rounds` write it again"):
            study_runs([("a", a), ("c", tmp_path / "c")], tmp_path / "out")
    (a / "round-2").mkdir()
    with pytest.raises(UserError, match="round 2 has begun"):
        study_runs([("a", a), ("b", b)], tmp_path / "out")


def test_the_command_takes_folders_with_names_and_without(tmp_path: Path) -> None:
    a, b = write_rounds(tmp_path / "a", 0.2), write_rounds(tmp_path / "b", 0.1)
    done = run_study("runs", a, f"less={b}", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "a over less: WinRate 75.0% (no interval), gain +0.0500" in done.stdout


def test_evaluations_are_compared_as_rounds_are(tmp_path: Path) -> None:
    folders = []
    for name, gain in (("a", 0.2), ("b", 0.1)):
        folders.append(write_rounds(tmp_path / name, gain) / "round-1" / "evaluation")
        with pytest.raises(UserError, match="no finished rounds or evaluation"):
            study_runs([("a", folders[-1]), ("b", folders[-1])], tmp_path / "out")
        (folders[-1] / "summary.json").write_text("{}")
    summary = study_runs([("a", folders[0]), ("b", folders[1])], tmp_path / "out")
    assert summary.over_others["b"].gold_gain.value == pytest.approx(0.05)
    assert "round(s)" not in format_study(summary)
