"""What people are shown: where it is found, what is refused, in which order it comes."""

from pathlib import Path

import numpy as np
import pytest
from small_parts import save_small_reward
from small_study import write_study

from rlhf.annotation_items import load_items, order_prompts
from rlhf.candidates import keep_prompts, load_candidates, prompts_of
from rlhf.errors import UserError
from rlhf.prompts import load_prompts
from rlhf.reward_model import load_reward
from rlhf.tables import CANDIDATES, image_cell, read_table, write_table


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


def test_uncertain_prompts_come_first_where_a_reward_is_given(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "candidates", prompts=6)
    items = load_items(folder, folder / "prompts")
    shuffled = order_prompts(items, "random", None, seed=0)
    assert sorted(shuffled) == sorted(items.prompt_ids)
    assert shuffled == order_prompts(items, "random", None, seed=0)
    reward = save_small_reward(tmp_path / "reward")
    ranked = order_prompts(items, "uncertain", reward, seed=0)
    prompts = {p.prompt_id: p for p in load_prompts(folder / "prompts")}
    uncertainty: dict[str, list[float]] = {name: [] for name in prompts}
    for (name, _), image in load_candidates(folder, prompts).items():
        scored = load_reward(reward).score(image[None], prompts[name].mask[None])
        uncertainty[name].append(float(scored.uncertainty))
    means = [np.mean(uncertainty[name]) for name in ranked]
    assert len(means) == 6
    assert means == sorted(means, reverse=True)
    with pytest.raises(UserError, match="belong together"):
        order_prompts(items, "uncertain", None, seed=0)
