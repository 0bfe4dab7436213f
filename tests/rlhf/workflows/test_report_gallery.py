"""Which pairs of samples the gallery of a run's report shows."""

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.workflows.run_report import choose_spread, pair_samples


def rows_of(gains, photographs):
    for index, gain in enumerate(gains):
        common = {"prompt_id": str(index), "sample_index": 0, "photograph": str(index % photographs), "hole": "box"}
        yield common | {"policy": "base", "gold": 0.5}
        yield common | {"policy": "aligned", "gold": 0.5 + gain}


def test_spread_holds_best_and_worst_and_all_photographs():
    pairs = pair_samples(list(rows_of(np.linspace(-0.2, 0.3, 100), 5)))
    chosen = choose_spread(pairs, 10)
    assert len(chosen) == 10
    assert (chosen[0], chosen[-1]) == (0, 99)
    shown = [pairs[i].base["photograph"] for i in chosen]
    assert {shown.count(str(i)) for i in range(5)} <= {1, 2, 3}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_spread_of_few_pairs_shows_them_all(count):
    assert choose_spread(pair_samples(list(rows_of([0.1] * count, 1))), 20) == list(range(count))


def test_sample_without_its_counterpart_is_left_out():
    rows = list(rows_of([0.1, 0.2], 1))
    assert len(pair_samples(rows[:-1])) == 1


def test_samples_of_one_model_alone_are_a_user_error():
    with pytest.raises(UserError, match="do not pair up"):
        pair_samples([row for row in rows_of([0.1, 0.2], 1) if row["policy"] == "base"])
