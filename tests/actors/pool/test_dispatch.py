"""Tasks are finished although samplers and scorers die, lie, raise and hang: stand-ins of both roles."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ray
import torch
from small_parts import small_prompts

from actors.messages import RolloutReceipt, RolloutTask, ScoreReceipt
from actors.pool.dispatch import Dispatcher
from actors.pool.quarantine import Quarantine
from actors.pool.task_records import PoisonPrompt
from actors.pool.worker_pool import Outcome, WorkerPool
from actors.remote_sampler import RemoteSampler
from actors.session.ray_session import ray_session
from actors.telemetry.incidents import Incidents, read_incidents
from actors.weight_sync import WeightsAck, WeightsNotice
from rlhf.config.run_config import CandidatesConfig
from rlhf.diffusion.candidates import plan_candidates
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores

PLAN = RolloutPlan(num_inference_steps=1, eta=1.0, stochastic_steps=frozenset())
NOTICE = WeightsNotice(version=3, weights=[], checksum="abc", size_bytes=0, probe=-1.5)


@dataclass
class Fault:
    """What a stand-in does wrong, the first `times` times; counted in files, which outlive it."""

    folder: Path
    name: str = ""
    times: int = 0
    prompt: str | None = None
    """Only at this prompt."""

    def strikes(self, name: str, prompts: tuple[str, ...] = ()) -> bool:
        if name != self.name or (self.prompt is not None and self.prompt not in prompts):
            return False
        struck = len(list(self.folder.glob("struck-*")))
        if struck < self.times:
            (self.folder / f"struck-{struck}").touch()
        return struck < self.times


class StandInSampler:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        if fault.strikes("start"):
            raise RuntimeError("no such model")

    def load_weights(self, notice: WeightsNotice) -> WeightsAck:
        if self._fault.strikes("die while loading"):
            os._exit(1)
        lies, drifts = self._fault.strikes("lie"), self._fault.strikes("drift")
        checksum = "lie" if lies else notice.checksum
        probe = -1.4 if drifts else notice.probe
        return WeightsAck(version=notice.version, checksum=checksum, probe=probe)

    def rollout(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, str, str]:
        if self._fault.strikes("die", task.prompt_ids):
            os._exit(1)
        if self._fault.strikes("hang"):
            time.sleep(600)
        version = 2 if self._fault.strikes("stale") else notice.version
        about = {"version": version, "checksum": notice.checksum, "duration_s": 0.0, "forward_images": 1}
        receipt = RolloutReceipt(prompt_ids=task.prompt_ids, **about)
        return receipt, "+".join(task.prompt_ids), "trajectories"

    def paint(self, notice: WeightsNotice, task: RolloutTask) -> tuple[RolloutReceipt, list[bytes], None]:
        receipt, text, _ = self.rollout(notice, task)
        return receipt, [name.encode() for name in text.split("+")], None


class StandInScorer:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def score(self, task: RolloutTask, images: str) -> ScoreReceipt:
        if self._fault.strikes("scorer dies"):
            os._exit(1)
        if self._fault.strikes("scorer refuses"):
            raise UserError("the reward is broken; mend it")
        assert images == "+".join(task.prompt_ids)
        return ScoreReceipt(
            scores={"model": scores([float(ord(name)) for name in task.prompt_ids])}, memory_bytes=len(images)
        )


def scores(values: list[float]) -> Scores:
    reward = torch.tensor(values, dtype=torch.float64)
    return Scores(reward=reward, uncertainty=torch.ones_like(reward), trust_weight=torch.ones_like(reward))


def task(*prompts: str) -> RolloutTask:
    return RolloutTask(prompt_ids=prompts, prompts=[], samples_per_prompt=1, plan=PLAN, seed_key=())


TASKS = [task("a", "b"), task("c", "d"), task("e", "f")]
REWARDS = [[97.0, 98.0], [99.0, 100.0], [101.0, 102.0]]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    # Workers do not find this module by its name.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_session(num_cpus=8):
        yield


def run(folder: Path, name: str = "", times: int = 1, prompt: str | None = None, timeout_s: float = 300.0) -> list:
    """The rewards of all tasks, run by two stand-in samplers and a scorer with that fault."""
    fault = Fault(folder=folder, name=name, times=times, prompt=prompt)
    dispatcher = pools(fault, Incidents(folder), timeout_s)
    try:
        finished = dispatcher.run(NOTICE, TASKS)
        assert all(worker.version == NOTICE.version for worker in dispatcher.samplers.idle)
        return [task.scores["model"].reward.tolist() for task in finished]
    finally:
        dispatcher.samplers.dismiss()
        dispatcher.scorers.dismiss()


def painters(fault: Fault) -> Dispatcher:
    """Two stand-in samplers whose images nobody scores."""
    pool = WorkerPool(
        "sampler", lambda _: ray.remote(num_cpus=0.1)(StandInSampler).remote(fault), 2, Incidents(fault.folder)
    )
    return Dispatcher(samplers=pool, scorers=None, timeout_s=300.0, sampling_method=lambda handle: handle.paint)


def pools(fault: Fault, incidents: Incidents, timeout_s: float = 300.0) -> Dispatcher:
    """Two samplers and a scorer."""

    def start(actor: type) -> object:
        return lambda _: ray.remote(num_cpus=0.1)(actor).remote(fault)

    return Dispatcher(
        samplers=WorkerPool("sampler", start(StandInSampler), 2, incidents),
        scorers=WorkerPool("scorer", start(StandInScorer), 1, incidents),
        timeout_s=timeout_s,
    )


def causes(folder: Path) -> list[tuple[str, str]]:
    return [(line["role"], line["cause"]) for line in read_incidents(folder)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fault", "incident"),
    [
        ("", None),
        ("die", ("sampler", "died")),
        ("die while loading", ("sampler", "died")),
        ("start", ("sampler", "died")),
        ("lie", ("sampler", "weights")),
        ("drift", ("sampler", "weights")),
        ("stale", ("sampler", "weights")),
        ("scorer dies", ("scorer", "died")),
    ],
)
def test_every_task_is_done_in_order_whatever_a_worker_does(
    local_ray: None, fault: str, incident: tuple[str, str] | None, tmp_path: Path
) -> None:
    assert run(tmp_path, fault) == REWARDS
    assert causes(tmp_path) == ([] if incident is None else [incident])


@pytest.mark.ray
def test_a_replacement_that_is_long_in_coming_is_reported_once_and_is_no_restart(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("actors.pool.worker_pool.SLOW_START_S", 0.0)
    assert run(tmp_path, "die") == REWARDS
    assert causes(tmp_path) == [("sampler", "died"), ("sampler", "waiting")]
    assert Incidents(tmp_path).metrics() == {"restarts": 1.0, "restarts/sampler/died": 1.0}


@pytest.mark.ray
@pytest.mark.parametrize("keep_images", [False, True])
def test_images_that_have_been_scored_are_dropped_but_for_the_first_task_and_a_dump(
    local_ray: None, keep_images: bool, tmp_path: Path
) -> None:
    dispatcher = pools(Fault(folder=tmp_path), Incidents(tmp_path))
    dispatcher.keep_images = keep_images
    done = dispatcher.run(NOTICE, TASKS)
    assert [task.images is not None for task in done] == [True, keep_images, keep_images]
    assert ray.get(done[0].images) == "a+b"
    assert [ray.get(task.trajectories) for task in done] == ["trajectories"] * 3
    for pool in dispatcher.pools:
        pool.dismiss()


@pytest.mark.ray
def test_weights_that_are_proved_late_are_no_fault(local_ray: None, tmp_path: Path) -> None:
    dispatcher = pools(Fault(folder=tmp_path), Incidents(tmp_path))
    slow = dispatcher.samplers.workers[0]
    before = replace(NOTICE, version=2)
    late: list[Outcome] = []
    dispatcher.samplers.begin(slow, slow.handle.load_weights.remote(before), late.append)
    assert [task.scores["model"].reward.tolist() for task in dispatcher.run(NOTICE, TASKS)] == REWARDS
    assert causes(tmp_path) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(local_ray: None, tmp_path: Path) -> None:
    assert run(tmp_path, "hang", timeout_s=20.0) == REWARDS
    assert ("sampler", "timeout") in causes(tmp_path)


@pytest.mark.ray
def test_a_prompt_that_kills_its_workers_also_when_it_is_alone_is_named(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(PoisonPrompt, match="d"):
        run(tmp_path, "die", times=100, prompt="d")
    assert causes(tmp_path) == [("sampler", "died")] * 3


@pytest.mark.ray
def test_two_deaths_by_chance_make_no_prompt_a_poison(local_ray: None, tmp_path: Path) -> None:
    assert run(tmp_path, "die", times=2, prompt="d") == REWARDS


@pytest.mark.ray
def test_what_the_user_can_put_right_is_not_tried_again(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the reward is broken; mend it"):
        run(tmp_path, "scorer refuses")
    assert causes(tmp_path) == []


@pytest.mark.ray
def test_a_worker_that_can_never_start_ends_the_run_with_its_reason(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a sampler cannot be started(.|\n)*no such model"):
        run(tmp_path, "start", times=100)


@pytest.mark.ray
def test_samplers_that_can_never_prove_their_weights_end_the_run(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not prove its weights 3 times.*cluster\.threads_\*"):
        run(tmp_path, "drift", times=100)


@pytest.mark.ray
def test_a_prompt_that_kills_samplers_is_quarantined_and_the_others_are_painted(
    local_ray: None, tmp_path: Path
) -> None:
    by_id = {prompt.prompt_id: prompt for prompt in small_prompts(8)}
    dispatcher = painters(Fault(folder=tmp_path, name="die", times=100, prompt="p4"))
    notice = WeightsNotice(version=1, weights=[], checksum="abc", size_bytes=0)
    sampler = RemoteSampler(dispatcher, notice, 0, lambda ids: [by_id[name] for name in ids], Quarantine(tmp_path))
    config = CandidatesConfig(samples_per_prompt=1, micro_batch_size=2)
    tasks = plan_candidates(dict.fromkeys(by_id, (32, 32)), config, seed=0, first_sample=0)
    done = {d.task.number: d for d in sampler.sample(tasks)}
    dispatcher.samplers.dismiss()
    assert [image.decode() for n in range(4) for image in done[n].images] == [name for name in by_id if name != "p4"]
    assert done[2].task.prompt_ids == ("p5",)
    assert list(Quarantine(tmp_path).reasons) == ["p4"]


@pytest.mark.ray
def test_few_tasks_are_in_memory_however_many_there_are(local_ray: None, tmp_path: Path) -> None:
    taken = 0

    def tasks() -> Iterator[RolloutTask]:
        nonlocal taken
        for index in range(30):
            taken += 1
            yield task(f"p{index}")

    dispatcher = painters(Fault(folder=tmp_path))
    notice = WeightsNotice(version=1, weights=[], checksum="abc", size_bytes=0)
    for done, _ in enumerate(dispatcher.stream(notice, tasks()), start=1):
        assert taken <= done + 4, "one at each sampler, one done by each, one ahead"
    dispatcher.samplers.dismiss()
    assert taken == done == 30
