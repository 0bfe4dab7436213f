"""What runs of `rlhf align` read in several modules."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of eight prompts and of a reward."""
    from small_parts import save_small_reward, small_prompts, write_prompts

    folder = tmp_path_factory.mktemp("inputs")
    return write_prompts(small_prompts(8), folder / "prompts"), save_small_reward(folder / "reward")
