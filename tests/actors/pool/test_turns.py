"""Pools that take turns on a GPU: who works while who sleeps, whatever dies. Handles answer at once: no Ray."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
import torch

from actors.messages import RolloutReceipt, RolloutTask, ScoreReceipt
from actors.pool import worker_pool
from actors.pool.dispatch import Dispatcher
from actors.pool.worker_pool import WorkerPool, send_to_sleep
from actors.telemetry.incidents import Incidents
from actors.weight_sync import WeightsAck, WeightsNotice
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.rewards.scores import Scores

PLAN = RolloutPlan(num_inference_steps=1, eta=1.0, stochastic_steps=frozenset())
NOTICE = WeightsNotice(version=3, weights=[], checksum="abc", size_bytes=0)
TASKS = [RolloutTask(prompt_ids=(n,), prompts=[], samples_per_prompt=1, plan=PLAN, seed_key=()) for n in "abcd"]
RESULTS = {
    "load_weights": WeightsAck(version=3, checksum="abc", probe=None),
    "rollout": RolloutReceipt(prompt_ids=(), version=3, checksum="abc", duration_s=0.0, forward_images=1),
    "score": ScoreReceipt(scores={"model": Scores(reward=torch.ones(1, dtype=torch.float64))}),
    "sleep": None,
}


@dataclass
class Gpu:
    """A GPU that only one role may use at a time; notes what happens on it."""

    dies_at: dict[str, int] = field(default_factory=dict)
    """By method: the number of its call at which the actor dies."""
    awake: dict[object, str] = field(default_factory=dict)
    """Role of each actor that is awake."""
    calls: list[str] = field(default_factory=list)


class Actor:
    """A handle. Like the real actors it is awake when it has started, and each call but `sleep` wakes it."""

    def __init__(self, role: str, gpu: Gpu) -> None:
        self._role, self._gpu = role, gpu
        for name in RESULTS:
            setattr(self, name, SimpleNamespace(remote=lambda *arguments, name=name: self.call(name)))
        rollout = SimpleNamespace(remote=lambda *arguments: (self.call("rollout"), "images", "trajectories"))
        self.rollout = SimpleNamespace(options=lambda num_returns: rollout)
        self._use()

    def _use(self) -> None:
        self._gpu.awake[self] = self._role
        assert len(set(self._gpu.awake.values())) == 1, f"two roles are awake: {self._gpu.calls}"

    def call(self, name: str) -> Any:
        gpu, future = self._gpu, Future[Any]()
        gpu.calls.append(name)
        if gpu.calls.count(name) == gpu.dies_at.get(name):
            gpu.awake.pop(self, None)
            future.set_exception(ray.exceptions.RayError("the actor died"))
        elif name == "sleep":
            gpu.awake.pop(self)
            future.set_result(None)
        else:
            self._use()
            future.set_result(RESULTS[name])
        return SimpleNamespace(future=lambda: future)


def start(gpu: Gpu) -> Dispatcher:
    """Two samplers and two scorers, started in turn as `start_dispatcher` does."""
    pools = []
    for role in ("sampler", "scorer"):
        pools.append(WorkerPool(role, lambda _, role=role: Actor(role, gpu), 2, Incidents(None)))
        send_to_sleep(pools[-1:], 300.0)
        assert not gpu.awake
    return Dispatcher(samplers=pools[0], scorers=pools[1], timeout_s=300.0, takes_turns=True)


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool.ray, "kill", lambda handle: None)


def test_all_is_sampled_then_all_is_scored_and_the_learner_finds_all_asleep() -> None:
    gpu = Gpu()
    dispatcher = start(gpu)
    for _ in range(2):
        gpu.calls.clear()
        done = dispatcher.run(NOTICE, TASKS, count=len(TASKS))
        assert [task.prompt_ids for task in done] == [task.prompt_ids for task in TASKS]
        assert not gpu.awake, "the learner's turn begins"
        work = [name for name in gpu.calls if name != "load_weights"]
        assert work == 4 * ["rollout"] + 2 * ["sleep"] + 4 * ["score"] + 2 * ["sleep"]


@pytest.mark.parametrize(
    ("method", "number"),
    [("rollout", 1), ("rollout", 4), ("load_weights", 2), ("score", 1), ("score", 4), ("sleep", 5), ("sleep", 8)],
)
def test_an_actor_that_dies_in_any_turn_is_replaced_by_one_that_sleeps_in_the_others(method: str, number: int) -> None:
    gpu = Gpu(dies_at={method: number})
    dispatcher = start(gpu)
    done = dispatcher.run(NOTICE, TASKS, count=len(TASKS))
    assert [task.prompt_ids for task in done] == [task.prompt_ids for task in TASKS]
    assert gpu.calls.count(method) > number, "the replacement was called"
    assert not gpu.awake


def test_a_start_that_goes_on_is_waited_for_before_the_other_role_works() -> None:
    """The last sampler dies when all tasks are sampled: scorers wait until its replacement has started and sleeps."""
    gpu = Gpu(dies_at={"sleep": 6})
    dispatcher = start(gpu)
    dispatcher.run(NOTICE, TASKS, count=len(TASKS))
    first = gpu.calls.index("score")
    assert gpu.calls[:first].count("sleep") == 4 + 3
