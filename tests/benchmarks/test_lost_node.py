"""The figures of a service that loses a node."""

from collections import Counter

import pytest

from benchmarks.serving.load import Outcome
from benchmarks.serving.lost_node import describe


def test_the_rate_before_the_loss_and_the_time_until_it_is_back_are_those_of_the_answers() -> None:
    """10 answers a second for 20 s, 2 a second from 20 to 30 s, then 10 again until 40 s."""
    finished = [number / 10 for number in range(200)] + [20 + number / 2 for number in range(20)]
    finished += [30 + number / 10 for number in range(100)]
    told = Outcome(seconds=40.0, statuses=Counter({"200": 320, "500": 3}), latencies=[0.5] * 320, finished=finished)
    figures = describe(told, lost_s=20.0)
    assert figures["images_per_s_before"] == pytest.approx(10.0)
    assert figures["least_images_per_s_after"] == pytest.approx(2.0)
    assert figures["rate_is_back_after_s"] == pytest.approx(15.0), "at the end of the first window that has it again"
    assert figures["longest_pause_s"] == pytest.approx(0.5)
    assert figures["statuses"] == {"200": 320, "500": 3}
