"""From annotations to a reward model, on photographs of flat noise whose score is the hole's brightness."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_annotations import bare_scores, make_world

from rlhf.annotated_images import AnnotatedImages, join_annotations
from rlhf.bound import fit_ridge
from rlhf.config import RewardConfig
from rlhf.errors import UserError
from rlhf.reward_model import Calibration, ScoredImages, load_reward
from rlhf.reward_training import (
    covariance_penalty,
    fit_head,
    pair_accuracy,
    reliability,
    train_features,
    train_reward,
)

CONFIG = RewardConfig(feature_dim=12, epochs=30, micro_batch_size=64, decorrelation=1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A reward folder and its report; the first annotation is a person's."""
    out = tmp_path_factory.mktemp("reward")
    prompts, candidates, annotations = make_world()
    annotations[0]["is_simulated"] = False
    return out, train_reward(prompts, candidates, annotations, out, CONFIG, seed=0)


def test_the_head_orders_samples_of_a_prompt_where_contents_drown_them() -> None:
    """Scores = a small part that the features hold, plus a large part of each prompt that they confuse with it."""
    generator = torch.Generator().manual_seed(0)
    prompts, samples = 60, 8
    content = torch.randn(prompts, 1, generator=generator)
    within = torch.randn(prompts, samples, generator=generator)
    # The feature mixes both, and what tells prompts apart points the other way.
    feature = (3.0 * content + within).flatten()
    scores = (within - 3.0 * content + 0.3 * torch.randn(prompts, samples, generator=generator)).flatten()
    features = torch.stack([feature, torch.ones_like(feature)], dim=1)
    keys = [(f"p{p}", s) for p in range(prompts) for s in range(samples)]
    head = fit_head(features, bare_scores(keys, scores), ridge=1.0)
    assert float(fit_ridge(features, scores, 1.0).weight[0]) < 0, "plain ridge is led astray"
    assert 0.5 < float(head.weight[0]) < 1.1


def test_covariance_penalty_is_zero_for_uncorrelated_features_and_the_sum_of_squares_else() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = torch.linalg.qr(features - features.mean(0)).Q + 3.0
    assert float(covariance_penalty(white)) == pytest.approx(0, abs=1e-12)
    covariance = np.cov(features.numpy().T)
    expected = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    assert float(covariance_penalty(features)) == pytest.approx(expected / 6)
    assert float(covariance_penalty(torch.stack([features[:, 0]] * 2, 1))) > 0.5


def test_pair_accuracy_compares_samples_of_one_prompt_only() -> None:
    keys = [("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    scores = np.array([0.0, 1.0, 10.0, 11.0])
    assert pair_accuracy(np.array([5.0, 6.0, 1.0, 2.0]), scores, keys) == 1.0
    assert pair_accuracy(np.array([5.0, 6.0, 2.0, 1.0]), scores, keys) == 0.5
    assert pair_accuracy(scores, np.zeros(4), keys) is None
    assert pair_accuracy(scores[:2], scores[:2], [("p", 0), ("p", 0)]) is None


def test_reliability_holds_every_row_once_in_fifths_of_rising_uncertainty() -> None:
    uncertainty = np.random.default_rng(0).permutation(np.arange(1.0, 51.0))
    rows = reliability(0.5 * uncertainty, uncertainty, conformal=0.6)
    assert [row["uncertainty"] for row in rows] == [5.5, 15.5, 25.5, 35.5, 45.5]
    assert [row["error"] for row in rows] == [2.75, 7.75, 12.75, 17.75, 22.75]
    assert all(row["coverage"] == 1.0 and row["bound"] == pytest.approx(0.6 * row["uncertainty"]) for row in rows)


@pytest.mark.parametrize(("count", "micro_batch_size"), [(13, 3), (16, 16), (20, 64), (9, 4)])
def test_features_train_on_any_number_of_annotations(count: int, micro_batch_size: int) -> None:
    data = join_annotations(*make_world(4))
    few = AnnotatedImages(
        images=data.images[:count],
        masks=data.masks[:count],
        scores=data.scores[:count],
        marks=data.marks[:count],
        keys=data.keys[:count],
        photographs=data.photographs[:count],
    )
    config = CONFIG.model_copy(update={"epochs": 1, "micro_batch_size": micro_batch_size})
    network = train_features(few, config, seed=0)
    features = network(few.images, few.masks)
    assert features.shape == (count, CONFIG.feature_dim + 1)
    assert torch.isfinite(features).all()


def test_the_reward_finds_what_was_scored_on_photographs_it_never_saw(trained: tuple[Path, dict[str, Any]]) -> None:
    _, report = trained
    assert report["rank_correlation_reward_score"]["value"] > 0.7
    assert report["pair_accuracy"] > 0.7
    assert report["coverage_measured"]["value"] > 0.6
    parts = [set(part) for part in report["parts"]]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 24


def test_collapsed_features_are_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"feature_dim": 2})
    with pytest.raises(UserError, match=r"features collapsed \(effective rank .*raise reward.decorrelation"):
        train_reward(*make_world(), tmp_path, config, seed=0)
    assert not list(tmp_path.iterdir())


def test_the_report_is_stored_with_all_that_it_promises(trained: tuple[Path, dict[str, Any]]) -> None:
    out, report = trained
    assert json.loads((out / "report.json").read_text()) == report
    promised = {"calibration", "coverage_stated", "coverage_measured", "mean_width", "pair_accuracy", "reliability"}
    promised |= {"rank_correlation_error_uncertainty", "rank_correlation_reward_score", "effective_rank", "parts"}
    promised |= {"is_simulated", "annotations_per_part", "photographs_per_part", "feature_dim"}
    assert promised <= set(report)
    assert set(report["calibration"]) == {field.name for field in fields(Calibration)}
    assert 4 <= report["effective_rank"] <= CONFIG.feature_dim + 1
    assert report["calibration"]["noise"] > 0
    assert report["calibration"]["uncertainty_quantile"] > report["calibration"]["median_uncertainty"]


def test_a_report_that_rests_on_any_simulated_annotation_says_so(trained: tuple[Path, dict[str, Any]]) -> None:
    assert trained[1]["is_simulated"] is True


def test_training_again_gives_the_same_scores_bit_for_bit(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    prompts, candidates, annotations = make_world()
    train_reward(prompts, candidates, annotations, tmp_path, CONFIG, seed=0)
    images = torch.stack(list(candidates.values())[:20])
    masks = torch.stack([prompts[key[0]].mask for key in list(candidates)[:20]])
    first, again = (load_reward(folder).score(images, masks) for folder in (trained[0], tmp_path))
    for field in fields(ScoredImages):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name)), field.name
