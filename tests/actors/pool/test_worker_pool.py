"""The bookkeeping of pools and runs, with actors that answer at once: no Ray."""

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.messages import RolloutReceipt, RolloutTask, ScoreReceipt
from actors.pool.dispatch import Dispatcher
from actors.pool.worker_pool import Outcome, WorkerPool
from actors.telemetry.incidents import Incidents
from actors.weight_sync import WeightsAck, WeightsNotice
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.rewards.scores import Scores

PLAN = RolloutPlan(num_inference_steps=1, eta=1.0, stochastic_steps=frozenset())
NOTICE = WeightsNotice(version=3, weights=[], checksum="abc", size_bytes=0)


class Call:
    """A call with its result, or one that goes on until the test ends it."""

    def __init__(self, *result: Any) -> None:
        self._future: Future = Future()
        for value in result:
            self._future.set_result(value)

    def future(self) -> Future:
        return self._future


class Sampler:
    """A handle; its methods are remote methods."""

    def __init__(self) -> None:
        self.rollout = SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._rollout))
        self.load_weights = SimpleNamespace(
            remote=lambda notice: Call(WeightsAck(version=3, checksum="abc", probe=None))
        )

    def _rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[Call, str, str]:
        receipt = RolloutReceipt(
            prompt_ids=task.prompt_ids, version=3, checksum="abc", duration_s=0.0, forward_images=1
        )
        return Call(receipt), "images", "trajectories"


class Scorer:
    def __init__(self) -> None:
        one = torch.ones(1, dtype=torch.float64)
        receipt = ScoreReceipt(scores={"model": Scores(reward=one)})
        self.score = SimpleNamespace(remote=lambda task, images: Call(receipt))


def tasks(count: int) -> Iterator[RolloutTask]:
    for number in range(count):
        yield RolloutTask(prompt_ids=(f"p{number}",), prompts=[], samples_per_prompt=1, plan=PLAN, seed_key=())


def pool(role: str, handle: type, size: int) -> WorkerPool:
    return WorkerPool(role, lambda _: handle(), size, Incidents(None))


def calls_per_task(samplers: int, count: int) -> float:
    """Number of calls, Python's and C's, that one run makes for each of its tasks."""
    workers = Dispatcher(
        samplers=pool("sampler", Sampler, samplers), scorers=pool("scorer", Scorer, samplers // 8), timeout_s=300.0
    )
    calls = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        finished = workers.run(NOTICE, tasks(count), count=count)
    finally:
        sys.setprofile(None)
    assert [task.prompt_ids[0] for task in finished] == [f"p{number}" for number in range(count)]
    return calls / count


def test_bookkeeping_for_a_task_does_not_grow_with_the_number_of_workers() -> None:
    few, many = calls_per_task(8, 2048), calls_per_task(512, 2048)
    loads = 512 / 2048
    assert many <= (1 + loads) * few, "each sampler also loads the weights once"


def test_all_calls_that_have_ended_are_settled_each_only_once() -> None:
    workers, outcomes = pool("sampler", Sampler, 3), list[Outcome]()
    running = Call()
    for worker, call in zip(list(workers.idle), (Call("first"), running, Call("second")), strict=True):
        workers.begin(worker, call, outcomes.append)
    assert not workers.idle
    ended = [workers.ended.get_nowait() for _ in range(workers.ended.qsize())]
    for of, future in ended + ended:
        of.end(future)
    assert [outcome.result for outcome in outcomes] == ["first", "second"]
    assert [worker.place for worker in workers.idle] == [0, 2]
    running.future().set_result("third")
    workers.ended.get_nowait()[0].end(running.future())
    assert outcomes[-1].result == "third"
    assert len(workers.idle) == 3


def test_all_hold_a_version_when_the_last_worker_has_proved_it() -> None:
    workers = pool("sampler", Sampler, 2)
    workers.set_version(workers.workers[0], 3)
    assert not workers.all_hold(3)
    workers.set_version(workers.workers[1], 3)
    assert workers.all_hold(3)
    workers.set_version(workers.workers[0], -1)
    assert not workers.all_hold(3)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_run_of_any_number_of_tasks_ends(count: int) -> None:
    workers = Dispatcher(samplers=pool("sampler", Sampler, 2), scorers=None, timeout_s=300.0)
    assert len(workers.run(NOTICE, tasks(count))) == count
