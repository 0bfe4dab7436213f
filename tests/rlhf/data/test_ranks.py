"""Ranks: an error of one is told to all in its own words, and rows of all are joined in their order."""

import torch
from ranks_in_turns import InTurns

from rlhf.data.ranks import Ranks
from rlhf.errors import UserError


def told(ranks: Ranks, errors: dict[int, str]) -> str | None:
    """The error that a rank ends with where some ranks have one."""
    try:
        with ranks.agreed():
            if ranks.rank in errors:
                raise UserError(errors[ranks.rank])
    except UserError as error:
        return str(error)
    return None


def test_every_rank_ends_with_the_words_of_the_first_that_failed() -> None:
    assert InTurns(3).run(lambda ranks: told(ranks, {2: "out: no room", 1: "out: größer"})) == ["out: größer"] * 3
    assert InTurns(3).run(lambda ranks: told(ranks, {})) == [None] * 3
    assert told(Ranks(), {0: "out: no room"}) == "out: no room"
    assert InTurns(2).run(lambda ranks: told(ranks, {1: "x" * 9000})) == ["x" * 2000] * 2, "a long one is cut"


def test_rows_of_all_ranks_are_joined_in_the_order_of_the_keys() -> None:
    keys = [(f"p{number}", number % 2) for number in range(12)]
    rows = torch.arange(24.0).view(12, 2)
    joined = InTurns(3).run(lambda ranks: ranks.join(keys, rows[ranks.own(keys)]))
    assert all(torch.equal(found, rows) for found in joined)
