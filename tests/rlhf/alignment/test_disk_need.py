from pathlib import Path

import pytest
from small_learner import align_config, start

from rlhf.alignment.disk_need import checkpoint_bytes, count_trained


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("algorithm", "size"), [("grpo", 16), ("nft", 20)])
def test_a_checkpoint_takes_the_bytes_that_are_told(
    small_pipeline: Path, tmp_path: Path, algorithm: str, size: int
) -> None:
    config = align_config(small_pipeline, algorithm=algorithm, trainable="full")
    assert checkpoint_bytes(config) == size
    learner = start(small_pipeline, config)
    learner.save(tmp_path, 1)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    numbers = count_trained(str(small_pipeline), config)
    moments = 8 * numbers  # Adam makes them at its first step, which this learner has not taken.
    assert written + moments == pytest.approx(size * numbers, rel=0.1)
