"""The order of an answer's samples."""

import math

from serve.api.answers import rank_of
from serve.engine.jobs import SampleScore


def test_samples_rank_by_their_lower_bound_and_without_one_by_their_reward() -> None:
    assert rank_of(SampleScore(reward=2.0, lower=1.0, upper=3.0)) == 1.0
    assert rank_of(SampleScore(reward=2.0, lower=None, upper=None)) == 2.0
    assert rank_of(SampleScore(reward=None, lower=None, upper=None)) == -math.inf
