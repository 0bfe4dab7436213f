"""What people are shown: where it is found, what is refused."""

from pathlib import Path

import pytest
from small_study import write_study

from rlhf.data.annotation.items import load_items
from rlhf.data.prompts import load_prompts
from rlhf.diffusion.candidates import keep_prompts, prompts_of
from rlhf.errors import UserError
from rlhf.storage.tables import CANDIDATES, image_cell, read_table, write_table


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "candidates")
    with pytest.raises(UserError, match="absent: no such folder"):
        load_items(tmp_path / "absent", folder / "prompts")
    rows = read_table(folder, CANDIDATES)
    broken = rows[1] | {"image": image_cell(b"no png", "c.png")}
    write_table([rows[0], broken], CANDIDATES, folder / "candidates.parquet")
    with pytest.raises(UserError, match="candidate p0 sample 1: not an image"):
        load_items(folder, folder / "prompts")
    write_table([rows[0] | {"prompt_id": "q"}], CANDIDATES, folder / "candidates.parquet")
    with pytest.raises(UserError, match="prompt q of .* is not there"):
        load_items(folder, folder / "prompts")


def test_prompts_are_found_beside_the_candidates(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "candidates")
    assert prompts_of(folder, None) == folder / "prompts"
    assert prompts_of(folder, tmp_path) == tmp_path
    keep_prompts(folder / "prompts", tmp_path / "other")
    assert load_prompts(prompts_of(tmp_path / "other", None))[0].prompt_id == "p0"
    with pytest.raises(UserError, match="--prompts"):
        prompts_of(tmp_path, None)
    with pytest.raises(UserError, match="no such folder"):
        prompts_of(tmp_path / "absent", None)
