"""A whole run listens on loopback alone."""

from pathlib import Path

import pytest
from listening import beyond_loopback, watch_listening
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

from actors.align import align

pytestmark = pytest.mark.ray


def test_an_alignment_listens_on_loopback_alone(small_pipeline: Path, tmp_path: Path) -> None:
    inputs = write_prompts(small_prompts(8), tmp_path / "prompts"), save_small_reward(tmp_path / "reward")
    with watch_listening() as found:
        align(small_config(small_pipeline, updates=1), *inputs, tmp_path / "run")
    for role in ("gcs_server", "RolloutSampler", "RewardScorer", "RayTrainWorker"):
        assert any(role in command for command in found.values()), role
    assert beyond_loopback(found) == {}
