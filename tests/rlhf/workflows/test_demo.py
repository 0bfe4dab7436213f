import csv
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from rlhf.data.photographs import FOLDER, Purpose, choose_photograph_folders, photographs_of
from rlhf.errors import UserError
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import list_photographs
from rlhf.workflows.demo import run_demo, stage_commands
from rlhf.workflows.stages import read_stages

FIRST_STAGE_ONLY = ("candidates.samples_per_prompt=0",)


def photographs(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray((rng.random((80, 90, 3)) * 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_the_demo_has_photographs_of_its_own_to_learn_from_and_to_judge_on() -> None:
    folders = choose_photograph_folders("demo", None, None)
    train, test = ([path.name for path in list_photographs(folder)] for folder in folders)
    assert (train, test) == (photographs_of("demo: learned from"), photographs_of("demo: held out"))
    assert len(train) == len(test) == 24
    files = [path for folder in folders for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 4e6
    assert {min(Image.open(path).size) for path in files} == {320}


def test_no_photograph_serves_two_purposes_and_each_has_its_licence() -> None:
    with (FOLDER / "SOURCES.tsv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert len({row["file"] for row in rows}) == len(rows)
    assert {row["serves"] for row in rows} == set(get_args(Purpose))
    assert all(row["licence"].startswith(("CC0-", "CC-BY-")) and row["author"] and row["source"] for row in rows)


def test_half_of_a_pair_of_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--eval-images"):
        choose_photograph_folders("demo", tmp_path, None)


def test_every_stage_reads_what_an_earlier_one_writes(tmp_path: Path) -> None:
    written = {str(tmp_path / "a"), str(tmp_path / "b")}
    for _, arguments in stage_commands(tmp_path, tmp_path / "a", tmp_path / "b"):
        pairs = dict(zip(arguments[1::2], arguments[2::2], strict=False))
        out = arguments[arguments.index("--out") + 1]
        reads = {a for a in arguments if a.startswith(str(tmp_path)) and a != out}
        assert reads <= written, pairs
        written.add(out)


def test_a_wrong_setting_ends_the_demo_before_any_stage(tmp_path: Path) -> None:
    images = photographs(tmp_path / "photos")
    with pytest.raises(UserError, match=r"candidates\.samples_per_prompt"):
        run_demo(tmp_path / "out", images, images, None, FIRST_STAGE_ONLY)
    assert not (tmp_path / "out").exists()


def test_a_failed_stage_ends_the_demo_with_its_code_and_keeps_what_is_done(tmp_path: Path) -> None:
    images = photographs(tmp_path / "photos")
    empty = photographs(tmp_path / "empty", count=0)
    with pytest.raises(SystemExit) as stopped:
        run_demo(tmp_path / "out", images, empty, None, ())
    assert stopped.value.code == 2
    assert list(read_stages(tmp_path / "out")) == ["prompts"]


def test_a_changed_stage_is_not_mixed_with_an_alignment_that_rests_on_the_old_one(tmp_path: Path) -> None:
    images = photographs(tmp_path / "photos")
    out = tmp_path / "out"
    (out / "align" / "learner").mkdir(parents=True)
    atomic_write_json(out / "stages.json", {"prompts": {"command": "rlhf prompts of old", "duration_s": 1.0}})
    with pytest.raises(UserError, match="prompts has changed"):
        run_demo(out, images, images, None, ())
