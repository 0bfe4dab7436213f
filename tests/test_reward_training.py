"""From annotations to a reward model, on photographs of flat noise whose score is the hole's brightness."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.annotated_images import (
    SHRINKAGE,
    AnnotatedImages,
    average_repeats,
    join_annotations,
    measure_noise,
    prompt_weights,
    split_photographs,
)
from rlhf.bound import fit_ridge
from rlhf.config import RewardConfig
from rlhf.errors import UserError
from rlhf.prompts import Prompt
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
SAMPLES = 10
Candidates = dict[tuple[str, int], torch.Tensor]


def make_world(photographs: int = 24, size: int = 32) -> tuple[dict[str, Prompt], Candidates, list[dict[str, Any]]]:
    """Prompts, candidates and annotations: brighter holes score higher; every third image is scored twice."""
    rng = np.random.default_rng(0)
    prompts, candidates, annotations = {}, {}, []
    for number in range(photographs):
        name = f"photograph-{number:02d}"
        image = torch.from_numpy(rng.normal(0, 0.2, (3, size, size))).float().clamp(-1, 1)
        mask = torch.zeros(1, size, size)
        mask[:, 8:24, 8:24] = 1
        hole = ("box", "brush")[number % 2]
        prompts[name] = Prompt(
            prompt_id=name, photograph=f"{name}.png", source="s", hole=hole, split="train", image=image, mask=mask
        )
        for sample in range(SAMPLES):
            brightness = rng.uniform(-0.8, 0.8)
            candidates[name, sample] = (image + mask * (brightness + nuisance(rng, size))).clamp(-1, 1)
            for annotator in range(2 if sample % 3 == 0 else 1):
                score = 3.5 + 3 * brightness + rng.normal(0, 0.2) + 0.5 * annotator
                annotations.append(annotation(name, sample, f"simulated-{annotator}", score))
    return prompts, candidates, annotations


def nuisance(rng: np.random.Generator, size: int) -> torch.Tensor:
    """A tint, a slope and grain, all of mean 0: what differs between fills and does not count."""
    tint = rng.normal(0, 0.3, (3, 1, 1))
    slope = rng.normal(0, 0.4) * np.linspace(-1, 1, size)[None, None, :]
    grain = rng.uniform(0, 0.4) * rng.normal(0, 1, (1, size, size))
    return torch.from_numpy(tint - tint.mean() + slope + grain).float()


def annotation(prompt_id: str, sample: int, annotator: str, score: float) -> dict[str, Any]:
    row = {"prompt_id": prompt_id, "sample_index": sample, "annotator": annotator}
    marks = dict.fromkeys(("structure", "texture", "overall", "annotation_score"), score)
    return row | marks | {"is_simulated": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A reward folder and its report; the first annotation is a person's."""
    out = tmp_path_factory.mktemp("reward")
    prompts, candidates, annotations = make_world()
    annotations[0]["is_simulated"] = False
    return out, train_reward(prompts, candidates, annotations, out, CONFIG, seed=0)


@pytest.mark.parametrize("count", [4, 5, 7, 12, 40, 101])
def test_parts_are_disjoint_complete_and_none_is_empty(count: int) -> None:
    photographs = [f"p{i % count}" for i in range(3 * count)]
    for shares in ((0.5, 0.2, 0.15, 0.15), (0.97, 0.01, 0.01, 0.01), (0.01, 0.01, 0.01, 0.97)):
        parts = split_photographs(photographs, shares, seed=1)
        assert all(parts)
        assert sum(len(part) for part in parts) == count
        assert set().union(*parts) == set(photographs)
        assert parts == split_photographs(photographs[::-1], shares, seed=1)


def test_parts_have_about_the_stated_shares() -> None:
    photographs = [f"p{i}" for i in range(200)]
    parts = split_photographs(photographs, (5.0, 2.0, 1.5, 1.5), seed=0)
    assert [len(part) for part in parts] == [100, 40, 30, 30]
    assert parts != split_photographs(photographs, (5.0, 2.0, 1.5, 1.5), seed=1)


def test_too_few_photographs_are_refused() -> None:
    with pytest.raises(UserError, match="3 photographs cannot be split into 4 parts"):
        split_photographs(["a", "b", "c", "a"], (0.25, 0.25, 0.25, 0.25), seed=0)


def test_scores_are_standardised_within_each_hole_family() -> None:
    prompts, candidates, annotations = make_world()
    for row in annotations:
        if prompts[row["prompt_id"]].hole == "brush":
            row["annotation_score"] = 0.3 * row["annotation_score"] + 4
    data = join_annotations(prompts, candidates, annotations)
    holes = np.array([prompts[key[0]].hole for key in data.keys])
    for hole in ("box", "brush"):
        scores = data.scores.numpy()[holes == hole]
        assert scores.mean() == pytest.approx(0, abs=1e-5)
        assert scores.std() == pytest.approx(1, abs=1e-5)


def test_an_annotators_bias_is_removed() -> None:
    prompts, candidates, _ = make_world(4)
    rng = np.random.default_rng(1)
    quality = {key: rng.normal() for key in candidates}
    rows = {}
    for bias in (0.0, 3.0):
        annotations = [annotation(*key, f"a{a}", 3 + q + bias * a) for key, q in quality.items() for a in range(2)]
        rows[bias] = join_annotations(prompts, candidates, annotations).scores
    torch.testing.assert_close(rows[3.0], rows[0.0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[3.0][0::2], rows[3.0][1::2], atol=1e-5, rtol=1e-5)


def test_annotations_are_joined_to_their_own_images() -> None:
    prompts, candidates, annotations = make_world(4)
    stranger = annotation("unknown", 0, "a", 3.0)
    data = join_annotations(prompts, candidates, [stranger, *annotations])
    assert data.keys == [(row["prompt_id"], row["sample_index"]) for row in annotations]
    for index in (0, 7, len(annotations) - 1):
        assert torch.equal(data.images[index], candidates[data.keys[index]])
        assert data.photographs[index] == prompts[data.keys[index][0]].photograph
    brightness = (data.images * data.masks).mean((1, 2, 3))
    assert float(torch.corrcoef(torch.stack([brightness, data.scores]))[0, 1]) > 0.9


def test_annotations_that_teach_nothing_are_refused() -> None:
    prompts, candidates, annotations = make_world(4)
    with pytest.raises(UserError, match="none belongs to these candidates"):
        join_annotations(prompts, candidates, [annotation("unknown", 0, "a", 3.0)])
    with pytest.raises(UserError, match="all scores are the same"):
        join_annotations(prompts, candidates, [row | {"annotation_score": 3.0} for row in annotations])


def scored_twice(count: int, noise: float) -> AnnotatedImages:
    generator = torch.Generator().manual_seed(0)
    quality = torch.randn(count, generator=generator).repeat(2)
    return AnnotatedImages(
        images=torch.zeros(2 * count, 3, 1, 1),
        masks=torch.ones(2 * count, 1, 1, 1),
        scores=quality + noise * torch.randn(2 * count, generator=generator),
        marks=torch.zeros(2 * count, 3),
        keys=[("p", i) for i in range(count)] * 2,
        photographs=["p"] * (2 * count),
    )


def test_noise_of_three_scores_each_is_the_pooled_deviation() -> None:
    twice = scored_twice(300, 0.4)
    thrice = AnnotatedImages(
        images=twice.images,
        masks=twice.masks,
        scores=twice.scores,
        marks=twice.marks,
        keys=[("p", i // 3) for i in range(600)],
        photographs=twice.photographs,
    )
    expected = twice.scores.view(200, 3).var(dim=1).mean().sqrt()
    assert measure_noise(thrice) == pytest.approx(float(expected), rel=1e-6)


def test_repeated_marks_are_averaged_into_one_target_per_image() -> None:
    data = join_annotations(*make_world(4))
    groups, first_rows, targets = average_repeats(data)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(targets)))
    for group in groups:
        assert len({data.keys[first_rows[i]][0] for i in group}) == 1, "a group is one prompt"
    for number, row in enumerate(first_rows.tolist()):
        same = [i for i, key in enumerate(data.keys) if key == data.keys[row]]
        torch.testing.assert_close(targets[number, 3], data.scores[same].mean())


def test_prompts_whose_scores_spread_weigh_less_by_their_shrunk_deviation() -> None:
    calm, wild = [0.0, 1.0, 2.0, 3.0], [0.0, 4.0, 8.0, 12.0]
    keys = [("calm", i) for i in range(4)] + [("wild", i) for i in range(4)]
    images = torch.zeros(8, 3, 4, 4)
    scores = torch.tensor(calm + wild)
    data = AnnotatedImages(
        images=images,
        masks=images[:, :1],
        scores=scores,
        marks=torch.zeros(8, 3),
        keys=keys,
        photographs=[key[0] for key in keys],
    )
    weights = prompt_weights(data)
    variances = np.array([np.var(calm), np.var(wild)])
    shrunk = (4 * variances + SHRINKAGE * variances.mean()) / (4 + SHRINKAGE)
    assert float(weights[0] / weights[4]) == pytest.approx(np.sqrt(shrunk[1] / shrunk[0]), rel=1e-6)
    assert float(weights.square().mean()) == pytest.approx(1.0, rel=1e-6)


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
    images = torch.zeros(len(keys), 3, 2, 2)
    data = AnnotatedImages(
        images=images,
        masks=images[:, :1],
        scores=scores,
        marks=torch.zeros(len(keys), 3),
        keys=keys,
        photographs=[key[0] for key in keys],
    )
    head = fit_head(features, data, ridge=1.0)
    assert float(fit_ridge(features, scores, 1.0).weight[0]) < 0, "plain ridge is led astray"
    assert 0.5 < float(head.weight[0]) < 1.1


def test_noise_is_measured_from_images_scored_twice() -> None:
    assert measure_noise(scored_twice(2000, 0.4)) == pytest.approx(0.4, rel=0.05)


def test_noise_is_unknown_where_too_few_images_are_scored_twice() -> None:
    assert measure_noise(scored_twice(9, 0.4)) is None
    assert measure_noise(scored_twice(10, 0.4)) is not None


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
