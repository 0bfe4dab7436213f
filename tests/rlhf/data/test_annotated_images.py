"""Annotations joined to their images: normalised scores, parts by photograph, noise and weights."""

import numpy as np
import pytest
import torch
from small_annotations import annotation, bare_scores, make_world

from rlhf.data.annotated_images import (
    SHRINKAGE,
    AnnotatedImages,
    average_repeats,
    join_annotations,
    measure_noise,
    prompt_weights,
    split_photographs,
)
from rlhf.errors import UserError


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
    images, masks = data.pictures.show(data.keys)
    for index in (0, 7, len(annotations) - 1):
        assert torch.equal(images[index], candidates[data.keys[index]])
        assert data.photographs[index] == prompts[data.keys[index][0]].photograph
    brightness = (images * masks).mean((1, 2, 3))
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
    scores = quality + noise * torch.randn(2 * count, generator=generator)
    return bare_scores([("p", i) for i in range(count)] * 2, scores)


def test_noise_of_three_scores_each_is_the_pooled_deviation() -> None:
    twice = scored_twice(300, 0.4)
    thrice = bare_scores([("p", i // 3) for i in range(600)], twice.scores)
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
    weights = prompt_weights(bare_scores(keys, torch.tensor(calm + wild)))
    variances = np.array([np.var(calm), np.var(wild)])
    shrunk = (4 * variances + SHRINKAGE * variances.mean()) / (4 + SHRINKAGE)
    assert float(weights[0] / weights[4]) == pytest.approx(np.sqrt(shrunk[1] / shrunk[0]), rel=1e-6)
    assert float(weights.square().mean()) == pytest.approx(1.0, rel=1e-6)


def test_noise_is_measured_from_images_scored_twice() -> None:
    assert measure_noise(scored_twice(2000, 0.4)) == pytest.approx(0.4, rel=0.05)


def test_noise_is_unknown_where_too_few_images_are_scored_twice() -> None:
    assert measure_noise(scored_twice(9, 0.4)) is None
    assert measure_noise(scored_twice(10, 0.4)) is not None
