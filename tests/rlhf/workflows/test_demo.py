from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlhf.errors import UserError
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.workflows.demo import run_demo, stage_commands
from rlhf.workflows.photographs import lay_out_photographs
from rlhf.workflows.stages import read_stages

FIRST_STAGE_ONLY = ("candidates.samples_per_prompt=0",)


def photographs(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray((rng.random((80, 90, 3)) * 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_no_photograph_is_on_both_sides_and_the_motorcycle_is_never_trained_on(tmp_path: Path) -> None:
    train, test = ({p.name for p in folder.iterdir()} for folder in lay_out_photographs(tmp_path))
    assert (len(train), len(test)) == (10, LEAST_PHOTOGRAPHS), "enough for intervals"
    assert not train & test
    assert not any("motorcycle" in name for name in train)


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
