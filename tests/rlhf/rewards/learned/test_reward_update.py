"""Further annotations for a reward: portions equal the whole, parts C and D stay out, scores keep their scale."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_annotations import annotation, make_world

from rlhf.config.run_config import RewardConfig
from rlhf.data.normalisation import load_normalisation, measure_normalisation
from rlhf.errors import UserError
from rlhf.rewards.learned.bound import PromptEffects, discount_prompt_effects, fit_ridge, update_ridge
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_memory import AnnotatedFeatures, load_memory, no_prompts, rows_to_add
from rlhf.rewards.learned.reward_training import train_reward
from rlhf.rewards.learned.reward_update import update_reward

CONFIG = RewardConfig(feature_dim=12, epochs=2, micro_batch_size=64, decorrelation=1.0)
PROMPTS, COUNT, DIM = 9, 60, 4


@pytest.fixture(scope="module")
def world():  # noqa: ANN201
    return make_world(16)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ANN001
    """A reward of the first six samples of every prompt."""
    out = tmp_path_factory.mktemp("reward")
    prompts, candidates, annotations = world
    train_reward(prompts, candidates, [r for r in annotations if r["sample_index"] < 6], out, CONFIG, seed=0)
    return out


def random_annotations() -> AnnotatedFeatures:
    """Annotations of few prompts in a jumbled order, so that every portion has some of each."""
    generator = torch.Generator().manual_seed(0)
    keys = [(f"p{i * 7 % PROMPTS}", i) for i in range(COUNT)]
    return AnnotatedFeatures(
        features=torch.randn(COUNT, DIM, generator=generator),
        scores=torch.randn(COUNT, generator=generator),
        keys=keys,
        photographs=[f"photo-{name}" for name, _ in keys],
    )


def test_portions_that_share_prompts_give_the_head_of_all_annotations_at_once() -> None:
    data, effects = random_annotations(), PromptEffects(within=0.5, between=0.8)
    numbers = torch.tensor([int(name[1:]) for name, _ in data.keys])
    shares = effects.shares(numbers)
    z, y = data.features.double(), data.scores.double()
    prior = torch.arange(DIM).double()
    rows = discount_prompt_effects(z, numbers, shares), discount_prompt_effects(y, numbers, shares)
    whole = fit_ridge(*rows, 2.0, prior=prior)
    head, seen = fit_ridge(z[:0], y[:0], 2.0, prior=prior), no_prompts(DIM)
    for portion in (range(0, 25), range(25, 26), range(26, COUNT)):
        part = data.rows(list(portion))
        head, seen = update_ridge(head, *rows_to_add(part, seen, effects)), seen.added(part)
    torch.testing.assert_close(head.cholesky, whole.cholesky, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(head.weight, whole.weight, atol=1e-9, rtol=1e-9)


def test_an_update_in_two_halves_equals_one_of_all(world, trained: Path, tmp_path: Path) -> None:  # noqa: ANN001
    prompts, candidates, annotations = world
    new = [r for r in annotations if r["sample_index"] >= 6]
    update_reward(trained, prompts, candidates, new, tmp_path / "whole")
    update_reward(trained, prompts, candidates, new[::2], tmp_path / "half")
    update_reward(tmp_path / "half", prompts, candidates, new[1::2], tmp_path / "both")
    whole, both = (load_reward(tmp_path / name) for name in ("whole", "both"))
    torch.testing.assert_close(both.head.weight, whole.head.weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(both.head.cholesky, whole.head.cholesky, atol=1e-6, rtol=1e-6)
    assert both.calibration.conformal == pytest.approx(whole.calibration.conformal, rel=1e-6)
    assert json.loads((tmp_path / "both" / "report.json").read_text())["updates"] == 2


def test_features_stay_v_grows_and_what_was_annotated_is_less_uncertain(world, trained: Path, tmp_path: Path) -> None:  # noqa: ANN001
    prompts, candidates, annotations = world
    report = update_reward(trained, prompts, candidates, [r for r in annotations if r["sample_index"] >= 6], tmp_path)
    networks = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path))
    before_state, after_state = networks
    assert all(torch.equal(before_state[name], after_state[name]) for name in before_state)
    before, after = load_reward(trained), load_reward(tmp_path)
    learnt = [n for n, p in prompts.items() if p.photograph in report.parts[0] + report.parts[1]]
    images = torch.stack([candidates[name, 8] for name in learnt])
    masks = torch.stack([prompts[name].mask for name in learnt])
    assert (after.score(images, masks).uncertainty < before.score(images, masks).uncertainty).all()
    assert report.annotations_per_part[1] > json.loads((trained / "report.json").read_text())["annotations_per_part"][1]


def test_photographs_that_calibrate_and_report_stay_out_of_the_head(world, trained: Path, tmp_path: Path) -> None:  # noqa: ANN001
    prompts, candidates, annotations = world
    _, _, c, d = json.loads((trained / "report.json").read_text())["parts"]
    new = [r for r in annotations if r["sample_index"] >= 6 and prompts[r["prompt_id"]].photograph in c + d]
    update_reward(trained, prompts, candidates, new, tmp_path)
    before, after = load_reward(trained), load_reward(tmp_path)
    assert torch.equal(before.head.weight, after.head.weight)
    assert torch.equal(before.head.cholesky, after.head.cholesky)
    assert after.calibration.conformal != before.calibration.conformal
    of_c = sum(prompts[r["prompt_id"]].photograph in c for r in new)
    assert len(load_memory(tmp_path).calibration.keys) == len(load_memory(trained).calibration.keys) + of_c


def test_a_bound_that_got_no_annotations_of_its_own_still_covers_as_stated(
    world, trained: Path, tmp_path: Path
) -> None:  # noqa: ANN001
    prompts, candidates, annotations = world
    a = json.loads((trained / "report.json").read_text())["parts"][0]
    new = [r for r in annotations if r["sample_index"] >= 6 and prompts[r["prompt_id"]].photograph in a]
    update_reward(trained, prompts, candidates, new, tmp_path)
    model, part = load_reward(tmp_path), load_memory(tmp_path).calibration
    assert len(part.keys) == len(load_memory(trained).calibration.keys)
    errors = (part.scores - model.head.reward(part.features)).abs()
    covered = errors <= model.calibration.conformal * model.head.uncertainty(part.features) * (1 + 1e-9)
    assert float(covered.double().mean()) >= CONFIG.coverage


def test_new_scores_go_through_the_map_of_the_first_fit(tmp_path: Path) -> None:
    marks = np.array([[2.0], [4.0], [3.0], [7.0]])
    families, annotators = [("s", "box")] * 2 + [("s", "brush")] * 2, ["x", "y", "x", "y"]
    measure_normalisation(marks, families, annotators).save(tmp_path)
    stored = load_normalisation(tmp_path)
    np.testing.assert_allclose(
        stored.apply(marks, families, annotators),
        measure_normalisation(marks, families, annotators).apply(marks, families, annotators),
    )
    one = stored.apply(np.array([[5.0]]), [("s", "box")], ["x"])
    # x marks 1.5 below the mean of their families; without that, box has 3.5, 2.5: mean 3, deviation 0.5.
    assert one[0, 0] == pytest.approx((5.0 + 1.5 - 3.0) / 0.5)


def test_an_annotator_never_seen_has_no_bias_and_a_family_never_seen_the_pooled_scale() -> None:
    marks = np.array([[2.0], [4.0], [3.0], [7.0]])
    known = measure_normalisation(marks, [("s", "box")] * 2 + [("s", "brush")] * 2, ["x", "y", "x", "y"])
    pooled = np.array([3.5, 2.5, 4.5, 5.5])
    stranger, family = known.apply(np.array([[5.0], [5.0]]), [("s", "box"), ("t", "warp")], ["z", "z"])[:, 0]
    assert stranger == pytest.approx((5.0 - 3.0) / 0.5)
    assert family == pytest.approx((5.0 - pooled.mean()) / pooled.std())


def test_what_cannot_be_updated_is_said(world, trained: Path, tmp_path: Path) -> None:  # noqa: ANN001
    prompts, candidates, annotations = world
    with pytest.raises(UserError, match="choose another --out"):
        update_reward(trained, prompts, candidates, annotations, trained)
    with pytest.raises(UserError, match="none belongs to these candidates"):
        update_reward(trained, prompts, candidates, [annotation("unknown", 0, "a", 3.0)], tmp_path)
    assert not (tmp_path / "reward.json").exists()


def test_an_annotation_is_taken_in_once_though_it_is_given_twice(world, trained: Path, tmp_path: Path) -> None:  # noqa: ANN001
    prompts, candidates, annotations = world
    update_reward(trained, prompts, candidates, [r for r in annotations if r["sample_index"] >= 6], tmp_path / "new")
    update_reward(trained, prompts, candidates, annotations, tmp_path / "all")
    new, whole = (load_reward(tmp_path / name) for name in ("new", "all"))
    assert torch.equal(new.head.weight, whole.head.weight)
    with pytest.raises(UserError, match="has had all of these"):
        update_reward(tmp_path / "all", prompts, candidates, annotations, tmp_path / "again")
