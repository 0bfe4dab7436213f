"""Every family, over the boundary of processes: ratios, splits of the work, and runs that go on."""

from pathlib import Path

import pytest
import torch
from family_cases import CASES
from family_run import ALIGN, build_run, model_of, open_sampler, sample, sample_elsewhere, texts_of

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.trained_weights import load_trainable_state
from rlhf.diffusion.trajectories import Rollout, Trajectories

pytestmark = pytest.mark.usefixtures("process_group")
QUICK = ("FluxFill",)
FAMILIES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the runs that this module's tests ask for, all sampled by one other process."""
    folder = tmp_path_factory.mktemp("runs")
    asked = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    for name in asked:
        build_run(name, folder / name)
    sample_elsewhere(folder / name for name in asked)
    return folder


def sampled(place: Path) -> list[Rollout]:
    """What the other process sampled."""
    found: list[Rollout] = torch.load(place / "sampled.pt", weights_only=False)
    return found


def start_learner(place: Path) -> Learner:
    """A learner that opens the network alone, at the run's start."""
    policy = load_policy(model_of(place), parts={Part.NETWORK}, texts=texts_of(place))
    passes = algorithm_of(ALIGN).passes_per_batch(ALIGN)
    return Learner(policy, ALIGN, micro_batches=passes, seed=0, start=place / "policy")


def to_batch(rolled: Rollout, update: int = 0) -> TrainingBatch:
    count = len(rolled.images)
    advantages = torch.randn(count, generator=torch.Generator().manual_seed(update))
    return TrainingBatch(trajectories=rolled.trajectories, advantages=advantages, trust_weights=torch.ones(count))


@pytest.mark.parametrize("name", FAMILIES)
def test_ratio_is_one_before_the_first_update_with_log_probs_of_another_process(runs: Path, name: str) -> None:
    learner = start_learner(runs / name)
    metrics = learner.train([to_batch(sampled(runs / name)[-1])])
    assert metrics["ratio_error"] <= 1e-6
    assert metrics["approx_kl"] <= 1e-12
    assert metrics["kl_to_base"] > 0, "the start is not the base model"


@pytest.mark.parametrize("name", FAMILIES)
def test_two_samplers_paint_what_one_does_however_the_prompts_are_split(runs: Path, name: str) -> None:
    here, there = sample(open_sampler(runs / name), runs / name), sampled(runs / name)
    for ours, theirs in zip(here, there, strict=True):
        assert isinstance(ours.trajectories, Trajectories)
        assert isinstance(theirs.trajectories, Trajectories)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.trajectories.next_latents, theirs.trajectories.next_latents)
        assert torch.equal(ours.trajectories.old_log_prob, theirs.trajectories.old_log_prob)
    split = torch.cat([here[0].images, there[1].images])
    torch.testing.assert_close(split, here[2].images, atol=2 / 255 + 1e-6, rtol=0)
    assert float((split - here[2].images).abs().mean()) < 1e-4, "rounding to 8 bits differs in few pixels"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_that_goes_on_from_its_checkpoint_equals_an_uninterrupted_one(
    runs: Path, name: str, tmp_path: Path
) -> None:
    place, learner = runs / name, start_learner(runs / name)
    learner.train([to_batch(sampled(place)[-1])])
    learner.save(tmp_path, 1)
    again = start_learner(place)
    assert again.load(tmp_path) == 1
    sampler = open_sampler(place)
    for one in (learner, again):
        load_trainable_state(sampler.network, one.acting_weights())
        one.train([to_batch(sample(sampler, place, update=1)[-1], update=1)])
    ours, theirs = learner.weights(), again.weights()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    averaged = again.averaged_weights()
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in learner.averaged_weights().items())
