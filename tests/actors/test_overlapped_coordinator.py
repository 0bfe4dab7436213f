"""The coordinator that runs ahead: which weights an update samples with, and what happens when work is lost."""

from dataclasses import dataclass, field

import pytest
import torch

from actors.messages import UpdateWork
from actors.overlapped_coordinator import OverlappedCoordinator
from rlhf.errors import UserError


@dataclass
class FakeCoordinator:
    """Notes each call; the weights of update n are [n]."""

    calls: list[tuple[int, int, float | None]] = field(default_factory=list)
    """Update, version and probe."""
    fails_at: int | None = None

    def collect(
        self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None, *, version: int | None = None
    ) -> UpdateWork:
        assert version is not None
        assert float(weights["w"]) == version
        self.calls.append((update, version, probe))
        if update == self.fails_at:
            raise UserError(f"update {update} cannot be collected")
        return UpdateWork(shares=[], metrics={"update": update, "policy_version": version}, checksum="")


def weights(update: int) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(float(update))}


def versions(overlapped: OverlappedCoordinator, first: int, updates: int) -> list[tuple[float, float]]:
    works = [overlapped.collect(update, weights(update), -float(update)) for update in range(first, updates)]
    return [(work.metrics["update"], work.metrics["policy_version"]) for work in works]


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [(1, [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]), (2, [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2)])],
)
def test_weights_are_as_old_as_allowed_from_the_second_update_on(staleness: int, expected: list) -> None:
    inner = FakeCoordinator()
    assert versions(OverlappedCoordinator(inner, max_staleness=staleness, updates=5), 0, 5) == expected
    assert [(update, version) for update, version, _ in inner.calls] == expected, "in order, and none beyond the end"
    assert all(probe == -version for _, version, probe in inner.calls), "the probe belongs to the weights"


def test_a_run_that_goes_on_begins_with_the_weights_that_it_has() -> None:
    inner = FakeCoordinator()
    overlapped = OverlappedCoordinator(inner, max_staleness=1, updates=5)
    assert versions(overlapped, 3, 5) == [(3, 3), (4, 3)]


def test_the_next_rollout_is_begun_before_the_learner_asks_for_it() -> None:
    inner = FakeCoordinator()
    overlapped = OverlappedCoordinator(inner, max_staleness=1, updates=3)
    overlapped.collect(0, weights(0))
    (ahead,) = overlapped._begun.values()
    assert ahead.result(60).metrics["update"] == 1


def test_work_that_was_lost_is_collected_again_with_the_weights_of_its_own_update() -> None:
    inner = FakeCoordinator()
    overlapped = OverlappedCoordinator(inner, max_staleness=1, updates=3)
    versions(overlapped, 0, 2)
    again = overlapped.collect(1, weights(1))
    assert (again.metrics["update"], again.metrics["policy_version"]) == (1, 1)
    assert versions(overlapped, 2, 3) == [(2, 1)], "the update ahead is kept"


def test_an_error_reaches_the_learner_at_its_own_update() -> None:
    inner = FakeCoordinator(fails_at=1)
    overlapped = OverlappedCoordinator(inner, max_staleness=1, updates=3)
    assert overlapped.collect(0, weights(0)).metrics["update"] == 0
    with pytest.raises(UserError, match="update 1 cannot be collected"):
        overlapped.collect(1, weights(1))
