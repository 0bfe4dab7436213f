"""Iterative refinement: what each round reads, where it stops for people, and two tiny rounds end to end."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from small_photographs import TINY_ROUNDS, write_smooth_photographs

from rlhf.config.config_files import find_run_file, load_config
from rlhf.config.run_config import RunConfig
from rlhf.storage.atomic_files import atomic_write_json, finite
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, image_cell, read_table, write_table
from rlhf.workflows.rounds import (
    RoundsPlan,
    annotate_arguments,
    candidate_stages,
    collect_annotated,
    learning_stages,
    prompt_stages,
    run_rounds,
)
from rlhf.workflows.stages import Stage, read_stages


def make_plan(out: Path, **changes: object) -> RoundsPlan:
    settings: dict = {
        "out": out,
        "rounds": 3,
        "annotations_per_round": 40,
        "select": "uncertain",
        "people": False,
        "config": RunConfig(),
        "options": ("--set", "seed=0"),
    }
    return RoundsPlan(**(settings | changes))


def without_refit() -> RunConfig:
    return RunConfig.model_validate({"rounds": {"refit": False}})


def write_rows(folder: Path, number: int, samples: range) -> None:
    """Candidates of one prompt, of which the first is annotated."""
    rows = [
        dict.fromkeys(CANDIDATES.names, 0) | {"prompt_id": "p", "sample_index": s, "image": image_cell(b"x", "x.png")}
        for s in samples
    ]
    write_table(rows, CANDIDATES, folder / f"round-{number}" / "candidates" / "candidates.parquet")
    mark = dict.fromkeys(("structure", "texture", "overall"), float(number))
    row = {"prompt_id": "p", "sample_index": samples[0], "annotator": "a", "annotated_at": None, "is_simulated": True}
    write_table([row | mark], ANNOTATIONS, folder / f"round-{number}" / "annotations" / "annotations.parquet")


@pytest.mark.parametrize("config", [RunConfig(), without_refit()])
def test_every_stage_reads_what_an_earlier_one_writes(tmp_path: Path, config: RunConfig) -> None:
    plan = make_plan(tmp_path, config=config)
    stages: list[Stage] = prompt_stages(plan, tmp_path / "a", tmp_path / "b")
    for number in (1, 2, 3):
        write_rows(tmp_path, number, range(2))
        stages += [*candidate_stages(plan, number), *learning_stages(plan, number)]
    assert len(stages) == len({stage.name for stage in stages}) == 2 + 3 * 5
    written = [tmp_path / "a", tmp_path / "b", *(tmp_path / f"round-{n}" / "annotated" for n in (1, 2, 3))]
    for stage in stages:
        words = stage.arguments
        out = words[words.index("--out") + 1]
        for word in words:
            if word.startswith(str(tmp_path)) and word != out:
                assert any(Path(word).is_relative_to(folder) for folder in written), (stage.name, word)
        written.append(Path(out))


def test_each_round_starts_from_the_last_ones_policy_and_the_first_from_the_base(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, config=without_refit())
    for number in (1, 2):
        write_rows(tmp_path, number, range(2))
    first, second = ([s.arguments for s in learning_stages(plan, number)] for number in (1, 2))
    assert "--policy" not in first[1]
    assert second[1][second[1].index("--policy") + 1] == str(tmp_path / "round-1" / "align" / "policy-000030")
    assert "--update" not in first[0]
    assert second[0][second[0].index("--update") + 1] == str(tmp_path / "round-1" / "reward")
    assert "uncertain" not in annotate_arguments(plan, 1), "there is no reward yet"
    assert "uncertain" in annotate_arguments(plan, 2)
    numbered = candidate_stages(plan, 3)[0].arguments
    assert numbered[numbered.index("--first-sample") + 1] == "12", "after those of two rounds of six"


def test_annotations_of_all_rounds_come_together_with_their_candidates_alone(tmp_path: Path) -> None:
    for number, samples in ((1, range(0, 3)), (2, range(3, 6))):
        write_rows(tmp_path, number, samples)
    collect_annotated(make_plan(tmp_path), 2)
    folder = tmp_path / "round-2" / "annotated"
    assert [row["sample_index"] for row in read_table(folder / "candidates", CANDIDATES)] == [0, 3]
    assert [row["overall"] for row in read_table(folder / "annotations", ANNOTATIONS)] == [1.0, 2.0]


def test_rounds_have_a_run_file_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, (images, out) = find_run_file("rounds"), (tmp_path / "photos", tmp_path / "out")
    plan = make_plan(out, config=load_config(file), options=("--config", str(file)), people=True)
    done = [*prompt_stages(plan, images, images), *candidate_stages(plan, 1)]
    finished = {s.name: {"command": shlex.join(["rlhf", *s.arguments]), "settings": s.settings} for s in done}
    atomic_write_json(out / "stages.json", finished)
    assert run_rounds(out, images, images, rounds=3, annotations_per_round=40, people=True) == []
    assert capsys.readouterr().err.count("done before") == 3


@pytest.mark.slow
def test_rounds_stop_for_people_with_their_command_and_do_nothing_twice(
    small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(TINY_ROUNDS | {"model": {"path": str(small_pipeline)}}))
    images = write_smooth_photographs(tmp_path / "photos", 3)
    out = tmp_path / "out"
    for _ in range(2):
        lines = run_rounds(out, images, images, rounds=2, annotations_per_round=8, people=True, config=config)
        assert lines == []
        shown = capsys.readouterr()
        assert f"rlhf annotate {out / 'round-1' / 'candidates'} --out {out / 'round-1' / 'annotations'}" in shown.out
        assert "--limit 8" in shown.out
    assert shown.err.count("done before") == 3
    assert list(read_stages(out)) == ["prompts", "held-out prompts", "round 1: candidates"]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("refit", [True, False])
def test_two_rounds_end_to_end(small_pipeline: Path, tmp_path: Path, refit: bool) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(TINY_ROUNDS | {"model": {"path": str(small_pipeline)}, "rounds": {"refit": refit}})
    )
    train, test = write_smooth_photographs(tmp_path / "train", 12), write_smooth_photographs(tmp_path / "test", 3)
    out = tmp_path / "out"
    settings = {"rounds": 2, "annotations_per_round": 80, "config": config}
    lines = finite(list(map(asdict, run_rounds(out, train, test, **settings))))
    assert json.loads((out / "rounds.json").read_text()) == lines
    assert [line["round"] for line in lines] == [1, 2]
    assert [line["select"] for line in lines] == ["random", "uncertain"]
    assert all(line["annotated_candidates"] == 80 and 0 <= line["win_rate"]["value"] <= 1 for line in lines)
    rewards = [json.loads((out / f"round-{n}" / "reward" / "report.json").read_text()) for n in (1, 2)]
    counts = [sum(r["annotations_per_part"]) for r in rewards]
    assert counts == [240, 480], "the second reward knows the annotations of both rounds"
    assert (rewards[1].get("updates") == 1) is not refit
    starts = [json.loads((out / f"round-{n}" / "align" / "start.json").read_text())["policy"] for n in (1, 2)]
    assert starts == [None, str((out / "round-1" / "align" / "policy-000001").resolve())]
    before = read_stages(out)
    assert finite(list(map(asdict, run_rounds(out, train, test, **settings)))) == lines
    assert read_stages(out) == before, "nothing is done twice"
