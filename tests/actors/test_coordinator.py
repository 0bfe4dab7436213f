"""The coordinator on learner rank 0: quarantine, scales, and shares of the ranks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from small_annotations import annotation, write_world
from small_learner import open_copy
from small_parts import prompts_of_three_sizes

from actors.coordinator import Coordinator, share_out
from actors.messages import BatchShare, RolloutTask, UpdateWork
from actors.pairs_coordinator import PairsCoordinator
from actors.pool.quarantine import Quarantine
from actors.pool.queue_times import QueueTimes
from actors.pool.task_records import FinishedTask, PoisonPrompt
from actors.session.ray_session import ray_session
from actors.telemetry.incidents import Incidents
from actors.weight_sync import WeightsNotice
from rlhf.alignment.algorithms import nft
from rlhf.alignment.algorithms.dpo import noise_pairs
from rlhf.config.reward_entry import RewardEntry
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.data.buckets import Size
from rlhf.data.preferred_pairs import PairTable
from rlhf.errors import UserError
from rlhf.rewards.combination import load_scales
from rlhf.rewards.scores import Scores

IDS = [f"p{i}" for i in range(10)]
ALIGN = AlignConfig(prompts_per_update=4, samples_per_prompt=2, micro_batch_size=4)
REWARDS = (RewardEntry(kind="seam"), RewardEntry(kind="model", name="mine"))


@dataclass
class FakePrompts:
    ids: list[str] = field(default_factory=lambda: IDS)
    sizes: dict[str, Size] = field(default_factory=lambda: dict.fromkeys(IDS, (32, 32)))

    def rows(self, names: list[str]) -> list[dict]:
        return [{"id": name} for name in names]


@dataclass
class FakeDispatcher:
    """Finishes all tasks at once, unless one holds the prompt that kills."""

    poison: str = ""
    repeated: int = 0
    pools: tuple = tuple(SimpleNamespace(role=role, busy_s=0.0, workers=[role]) for role in ("sampler", "scorer"))
    runs: list[tuple[str, ...]] = field(default_factory=list)
    """Prompts of each run."""

    def run(
        self, notice: WeightsNotice, tasks: Iterable[RolloutTask], times: QueueTimes, *, count: int
    ) -> list[FinishedTask]:
        given = list(tasks)
        assert count == len(given)
        self.runs.append(tuple(name for task in given for name in task.prompt_ids))
        if self.poison in self.runs[-1]:
            raise PoisonPrompt(self.poison)
        return [
            FinishedTask(
                number=number,
                prompt_ids=task.prompt_ids,
                images=None,
                trajectories=None,
                scores={
                    name: values(start + number, len(task.prompt_ids)) for name, start in (("seam", 0), ("mine", 10))
                },
                forward_images=1,
                scorer_memory_bytes=7 + number,
            )
            for number, task in enumerate(given)
        ]


def values(seed: int, prompts: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(reward=torch.rand(2 * prompts, generator=generator, dtype=torch.float64))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with ray_session(num_cpus=1):
        yield


def coordinator(out: Path, dispatcher: FakeDispatcher, prompts: FakePrompts | None = None) -> Coordinator:
    config = RunConfig(align=ALIGN, rewards=REWARDS)
    return Coordinator(config, prompts or FakePrompts(), dispatcher, Incidents(out), ranks=2, out=out)


def prompts_of(work: UpdateWork) -> list[str]:
    return [name for share in work.shares for batch in share for name in batch.prompt_ids]


@pytest.mark.ray
def test_a_prompt_that_kills_is_quarantined_and_the_update_is_collected_with_another(
    local_ray: None, tmp_path: Path
) -> None:
    first = FakeDispatcher()
    chosen = prompts_of(coordinator(tmp_path / "undisturbed", first).collect(0, {"w": torch.ones(3)}))
    deadly, dispatcher = chosen[1], FakeDispatcher(poison=chosen[1])
    work = coordinator(tmp_path, dispatcher).collect(0, {"w": torch.ones(3)})
    assert dispatcher.runs[0] == tuple(chosen)
    assert prompts_of(work) == list(dispatcher.runs[1])
    assert work.metrics["scorer_memory_bytes"] == 7 + len([b for share in work.shares for b in share]) - 1
    assert deadly not in prompts_of(work)
    assert [name for name in prompts_of(work) if name in chosen] == [name for name in chosen if name != deadly]
    assert work.metrics["prompts_quarantined"] == 1
    assert work.metrics["weights_bytes"] == 12
    assert list(Quarantine(tmp_path).reasons) == [deadly]


@pytest.mark.ray
def test_a_micro_batch_holds_prompts_of_one_size_and_an_update_the_same_prompts_of_all_sizes(
    local_ray: None, tmp_path: Path
) -> None:
    sizes = {name: (32, 32) if number % 3 else (16, 64) for number, name in enumerate(IDS)}
    lengths = set()
    for update in range(6):
        plain = prompts_of(coordinator(tmp_path / "plain", FakeDispatcher()).collect(update, {}))
        work = coordinator(tmp_path / "sizes", FakeDispatcher(), FakePrompts(sizes=sizes)).collect(update, {})
        batches = [batch for share in work.shares for batch in share if batch.weight > 0]
        assert sorted(name for batch in batches for name in batch.prompt_ids) == sorted(plain)
        for batch in batches:
            assert len({sizes[name] for name in batch.prompt_ids}) == 1
            assert len(batch.advantages) == len(batch.trust_weights) == 2 * len(batch.prompt_ids)
            assert float(batch.advantages.sum()) == pytest.approx(0, abs=1e-6), "a prompt's samples compare themselves"
        slots = sum(map(len, work.shares))
        weights = [batch.weight * 4 for batch in batches]
        assert weights == pytest.approx([slots * len(batch.prompt_ids) for batch in batches])
        lengths.add(len(batches))
    assert lengths == {2, 3}


@pytest.mark.ray
def test_pairs_of_several_sizes_are_noised_as_each_alone(local_ray: None, small_pipeline: Path, tmp_path: Path) -> None:
    prompts = {prompt.prompt_id: prompt for prompt in prompts_of_three_sizes(6)}
    candidates = {(name, s): (1 - 2 * s) * prompt.image for name, prompt in prompts.items() for s in range(2)}
    marks = [annotation(name, sample, "anna", 2.0 + sample) for name, sample in candidates]
    pairs = PairTable(*map(Path, write_world(tmp_path, prompts, candidates, marks)))
    align = AlignConfig(algorithm="dpo", prompts_per_update=6, micro_batch_size=4)
    config, policy = RunConfig(align=align), open_copy(small_pipeline)
    work = PairsCoordinator(config, pairs, policy, Incidents(tmp_path), ranks=2).collect(0, {})
    batches = [batch for share in work.shares for batch in share]
    assert [batch.weight for batch in batches] == pytest.approx([4 * 2 / 6] * 3 + [0.0])
    assert sorted(name for batch in batches[:3] for name in batch.prompt_ids) == sorted(prompts)
    plan = nft.plan_rollout(align, 0, 0)
    for batch in batches[:3]:
        found = ray.get(batch.trajectories[0])
        for place, name in enumerate(batch.prompt_ids):
            own, images = pairs.read([f"{name} 1>0 anna"])
            alone = noise_pairs(policy, own, images, plan, [(0, "align", 0, f"{name} 1>0 anna")])
            assert torch.equal(found.steps[:, 2 * place : 2 * place + 2], alone.steps)
            torch.testing.assert_close(found.latents[:, 2 * place : 2 * place + 2], alone.latents)


@pytest.mark.ray
def test_collecting_ends_when_the_quarantine_leaves_too_few_prompts(local_ray: None, tmp_path: Path) -> None:
    for name in IDS[:7]:
        Quarantine(tmp_path).add(name, "it kills")
    with pytest.raises(UserError, match="too few prompts are left"):
        coordinator(tmp_path, FakeDispatcher()).collect(0, {})


@pytest.mark.ray
def test_scales_of_the_first_update_are_kept_and_read_by_a_run_that_goes_on(local_ray: None, tmp_path: Path) -> None:
    first = coordinator(tmp_path, FakeDispatcher()).collect(0, {})
    scales = load_scales(tmp_path)
    assert scales.keys() == {"seam", "mine"}
    resumed = coordinator(tmp_path, FakeDispatcher()).collect(7, {}, version=5)
    assert load_scales(tmp_path) == scales
    assert resumed.metrics["reward"] == first.metrics["reward"], "the stand-in scores alike in every update"
    assert (resumed.metrics["policy_version"], resumed.metrics["staleness"]) == (5, 2)
    (tmp_path / "reward_scales.json").unlink()
    with pytest.raises(UserError, match="reward_scales.json: cannot be read"):
        coordinator(tmp_path, FakeDispatcher()).collect(7, {})


def test_a_quarantined_prompt_is_replaced_by_one_that_is_not_there_and_stays_so(tmp_path: Path) -> None:
    Quarantine(tmp_path).add("p3", "it kills")
    again = Quarantine(tmp_path)
    assert again.reasons == {"p3": "it kills"}
    chosen = again.substitute(["p1", "p3", "p2"], IDS, key=(0, 1))
    assert chosen[0::2] == ["p1", "p2"]
    assert chosen[1] not in ("p1", "p2", "p3")
    assert chosen == Quarantine(tmp_path).substitute(["p1", "p3", "p2"], IDS, key=(0, 1))
    assert again.substitute(["p1", "p2"], IDS, key=(0, 1)) == ["p1", "p2"]


def test_too_many_quarantined_prompts_end_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.add("p1", "it kills")
    with pytest.raises(UserError, match=r"too few prompts are left.*quarantine\.json"):
        quarantine.substitute(["p0", "p1"], ["p0", "p1"], key=(0,))


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (2, 2, 2, 2, 2), (4, 1, 2, 4), (3,), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_trains_on_the_same_global_batch(sizes: tuple[int, ...], ranks: int) -> None:
    made = [
        BatchShare(
            trajectories=[],
            images=[],
            advantages=torch.full((size,), i),
            trust_weights=torch.ones(size),
            prompt_ids=(),
            scores={},
        )
        for i, size in enumerate(sizes)
    ]
    shares = share_out(made, ranks)
    assert len({len(share) for share in shares}) == 1, "all ranks make the same number of passes"
    flat = [batch for share in shares for batch in share]
    assert [int(b.advantages[0]) for b in flat if b.weight > 0] == list(range(len(sizes)))
    mean = sum(b.weight * float(b.advantages[0]) for b in flat) / len(flat)
    expected = sum(i * size for i, size in enumerate(sizes)) / sum(sizes)
    assert mean == pytest.approx(expected), "the mean over all passes is that over all samples"
