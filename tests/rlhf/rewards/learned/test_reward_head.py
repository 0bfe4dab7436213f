"""The head of part A, its correction on part B, and the lambda between them."""

import torch
from small_annotations import bare_scores

from rlhf.rewards.learned.bound import fit_ridge
from rlhf.rewards.learned.reward_head import RIDGES, choose_ridge, correct_head, fit_first_head

PROMPTS, SAMPLES, DIM = 90, 8, 5


def scored_features(noise_sd: float = 0.5, shift: float = 0.0, seed: int = 0):  # noqa: ANN201
    """Features of prompts with effects of their own, and scores of a head of which `shift` is added to each weight."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(PROMPTS * SAMPLES, DIM, generator=generator)
    weight = torch.tensor([1.0, -0.5, 0.0, 0.3, 0.8]) + shift
    effects = 0.5 * torch.randn(PROMPTS, 1, generator=generator).expand(-1, SAMPLES).flatten()
    scores = features @ weight + effects + noise_sd * torch.randn(len(features), generator=generator)
    keys = [(f"p{seed}-{p}", s) for p in range(PROMPTS) for s in range(SAMPLES)]
    return features, bare_scores(keys, scores), weight.double()


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
    head, _ = fit_first_head(features, bare_scores(keys, scores), ridge=1.0)
    assert float(fit_ridge(features, scores, 1.0).weight[0]) < 0, "plain ridge is led astray"
    assert 0.5 < float(head.weight[0]) < 1.1


def test_the_correction_moves_the_head_to_what_other_photographs_say() -> None:
    features, data, _ = scored_features()
    first, effects = fit_first_head(features, data, 1.0)
    others, corrected_data, truth = scored_features(shift=0.4, seed=1)
    errors = [
        float((correct_head(first, effects, others, corrected_data, ridge).weight - truth).norm())
        for ridge in (1.0, 300.0, 1e9)
    ]
    assert errors[0] < errors[1] < errors[2]
    assert errors[0] < 0.15
    assert abs(errors[2] - float((first.weight - truth).norm())) < 1e-3


def test_the_correction_knows_nothing_of_part_a_but_its_head_and_variances() -> None:
    features, data, _ = scored_features()
    first, effects = fit_first_head(features, data, 1.0)
    others, other_data, _ = scored_features(seed=1)
    head = correct_head(first, effects, others, other_data, 30.0)
    # V is made of B's rows alone: with lambda I taken off, what is left has B's trace after the discount.
    rest = head.cholesky @ head.cholesky.T - 30.0 * torch.eye(DIM, dtype=torch.float64)
    assert 0 < float(rest.trace()) <= float(others.double().square().sum())


def test_lambda_is_large_where_parts_agree_and_small_where_heads_differ() -> None:
    features, data, _ = scored_features(noise_sd=3.0)
    assert choose_ridge(features, data, 1.0, seed=0) >= 3 * 300.0
    # A first head that its own ridge has shrunk to nothing leaves everything to the correction.
    features, data, _ = scored_features(noise_sd=0.2)
    assert choose_ridge(features, data, 1e9, seed=0) == 3 * min(RIDGES)
