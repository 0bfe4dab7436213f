"""The learner ranks receive their shares: each its own only, again after a loss, or the error of rank 0."""

import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import ray
import torch

from actors.learner_loop import announce, receive
from actors.messages import BatchShare, UpdateNotice, UpdateWork
from actors.session.ray_session import ray_session
from rlhf.errors import UserError

pytestmark = pytest.mark.ray
METRICS = {"reward": 0.5, "staleness": 0}


def never_end() -> None:
    threading.Event().wait()


class Owner:
    def begin(self) -> list[ray.ObjectRef]:
        return [ray.remote(num_cpus=0)(never_end).remote()]


def lost() -> ray.ObjectRef:
    """A reference to an object that is lost: the process that owned it is dead."""
    owner = ray.remote(num_cpus=0)(Owner).remote()
    (reference,) = ray.get(owner.begin.remote())
    ray.kill(owner)
    return reference


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    # Workers do not find this module by its name.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_session(num_cpus=1):
        yield


def share(number: int, trajectories: ray.ObjectRef | None = None) -> BatchShare:
    return BatchShare(
        trajectories=[ray.put(f"trajectories {number}") if trajectories is None else trajectories],
        images=[ray.put(f"images {number}")],
        advantages=torch.full((2,), float(number)),
        trust_weights=torch.ones(2),
        prompt_ids=(f"p{number}",),
        scores={},
        weight=float(number),
    )


def work(shares: list[list[BatchShare]]) -> UpdateWork:
    return UpdateWork(shares=shares, metrics=METRICS, checksum="")


def sent(message: object) -> Callable[[object], object]:
    """A broadcast that gives another rank the message of rank 0."""
    return lambda _: message


def test_each_rank_receives_its_own_share_with_the_metrics() -> None:
    shares = [[share(0), share(1)], [share(2), share(3)]]
    notice = announce(work(shares))
    for rank, collect in enumerate([lambda: work(shares), None]):
        metrics, own, batches = receive(rank, collect, sent(notice))
        numbers = [2 * rank, 2 * rank + 1]
        assert [batch.trajectories for batch in batches] == [f"trajectories {n}" for n in numbers]
        assert [float(batch.advantages[0]) for batch in batches] == numbers
        assert [batch.weight for batch in batches] == numbers
        assert ray.get(own[0].images[0]) == f"images {2 * rank}"
        assert metrics == METRICS


def test_a_rank_does_not_fetch_the_shares_of_others() -> None:
    notice = UpdateNotice(shares=[lost(), ray.put([share(1)])], metrics=METRICS)
    _, _, batches = receive(1, None, sent(notice))
    assert [batch.trajectories for batch in batches] == ["trajectories 1"]


def test_only_references_are_broadcast_however_large_the_batch() -> None:
    large = [share(number) for number in range(500)]
    notice = announce(work([large, large]))
    assert len(ray.cloudpickle.dumps(notice.metrics)) < 1000
    assert all(isinstance(reference, ray.ObjectRef) for reference in notice.shares)


@pytest.mark.parametrize("is_share_lost", [False, True])
def test_work_is_collected_again_when_an_object_was_lost(is_share_lost: bool) -> None:
    notices = [
        UpdateNotice(shares=[lost() if is_share_lost else ray.put([share(1, lost())])], metrics=METRICS),
        announce(work([[share(2)]])),
    ]
    collected = 0

    def collect() -> UpdateWork:
        nonlocal collected
        collected += 1
        return work([])

    _, _, batches = receive(0, collect, lambda _: notices[collected - 1])
    assert collected == 2
    assert [batch.trajectories for batch in batches] == ["trajectories 2"]


def test_an_error_of_rank_0_is_raised_on_all_ranks() -> None:
    messages: list[object] = []

    def fail() -> UpdateWork:
        raise UserError("the reward is not finite")

    def broadcast(message: object) -> object:
        messages.append(message)
        return message

    with pytest.raises(UserError, match="the reward is not finite"):
        receive(0, fail, broadcast)
    with pytest.raises(UserError, match="the reward is not finite"):
        receive(1, None, sent(*messages))
