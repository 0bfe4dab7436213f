"""The ridge head, the uncertainty, both multipliers, the effective rank and the trust weight."""

import math
import re

import pytest
import torch

from rlhf.errors import UserError
from rlhf.rewards.learned.bound import (
    conformal_multiplier,
    discount_prompt_effects,
    effective_rank,
    fit_ridge,
    measure_prompt_effects,
    theorem_multiplier,
    update_ridge,
)
from rlhf.rewards.trust_weight import trust_weight

RIDGE = 0.7


def make_data(count: int = 40, dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    features[:, 1] = features[:, 0] + 0.1 * features[:, 1]
    return features, torch.randn(count, generator=generator, dtype=torch.float64)


def gram_of(features: torch.Tensor) -> torch.Tensor:
    return features.T @ features + RIDGE * torch.eye(features.shape[1], dtype=torch.float64)


def test_ridge_equals_a_direct_solve_of_sums_over_rows() -> None:
    features, scores = make_data()
    gram_matrix, moments = RIDGE * torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for z, y in zip(features, scores, strict=True):
        gram_matrix += torch.outer(z, z)
        moments += y * z
    head = fit_ridge(features, scores, RIDGE)
    torch.testing.assert_close(head.weight, torch.linalg.solve(gram_matrix, moments))
    torch.testing.assert_close(head.cholesky @ head.cholesky.T, gram_matrix)
    torch.testing.assert_close(head.reward(features), features @ head.weight)


def test_ridge_minimises_the_penalised_squared_error() -> None:
    features, scores = make_data()
    weight = fit_ridge(features, scores, RIDGE).weight.clone().requires_grad_()
    loss = (features @ weight - scores).square().sum() + RIDGE * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-9


def test_ridge_pulls_towards_its_prior() -> None:
    features, scores = make_data()
    prior = torch.arange(6, dtype=torch.float64)
    expected = prior + fit_ridge(features, scores - features @ prior, RIDGE).weight
    torch.testing.assert_close(fit_ridge(features, scores, RIDGE, prior=prior).weight, expected)
    torch.testing.assert_close(fit_ridge(features, scores, 1e12, prior=prior).weight, prior)


@pytest.mark.parametrize("size", [1, 7])
def test_annotations_that_come_later_leave_the_head_that_a_new_fit_gives(size: int) -> None:
    features, scores = make_data(60)
    prior = torch.linspace(-1, 1, 6, dtype=torch.float64)
    head = fit_ridge(features[:20], scores[:20], RIDGE, prior=prior)
    for rows in torch.arange(20, 60).split(size):
        head = update_ridge(head, features[rows], scores[rows])
    whole = fit_ridge(features, scores, RIDGE, prior=prior)
    torch.testing.assert_close(head.weight, whole.weight, atol=1e-9, rtol=0)
    torch.testing.assert_close(head.cholesky, whole.cholesky, atol=1e-9, rtol=0)


def test_uncertainty_is_the_norm_of_v_inverse() -> None:
    features, scores = make_data()
    inverse = torch.linalg.inv(gram_of(features))
    new = make_data(seed=1)[0]
    expected = torch.stack([torch.sqrt(z @ inverse @ z) for z in new])
    torch.testing.assert_close(fit_ridge(features, scores, RIDGE).uncertainty(new), expected)


def test_uncertainty_is_not_the_norm_that_was_released() -> None:
    features, scores = make_data()
    uncertainty = fit_ridge(features, scores, RIDGE).uncertainty(features)
    released = torch.linalg.solve(gram_of(features), features.T).norm(dim=0)
    ratio = uncertainty / released
    assert float(ratio.max() / ratio.min()) > 1.5, "not even proportional"


def prompts_with_effects(effect_sd: float, noise_sd: float, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals of prompts with 3 to 6 annotations each, and the prompts' numbers."""
    generator = torch.Generator().manual_seed(5)
    prompts = torch.arange(count).repeat_interleave(torch.arange(count) % 4 + 3)
    effects = effect_sd * torch.randn(count, generator=generator, dtype=torch.float64)
    return effects[prompts] + noise_sd * torch.randn(len(prompts), generator=generator, dtype=torch.float64), prompts


def test_discounting_prompt_effects_whitens_their_covariance() -> None:
    effect_sd, noise_sd, counts = 0.8, 0.5, (2, 5)
    prompts = torch.tensor([0] * 2 + [1] * 5)
    same = (prompts[:, None] == prompts).double()
    covariance = noise_sd**2 * torch.eye(7, dtype=torch.float64) + effect_sd**2 * same
    shares = torch.tensor([1 - noise_sd / math.sqrt(noise_sd**2 + n * effect_sd**2) for n in counts])
    transform = discount_prompt_effects(torch.eye(7, dtype=torch.float64), prompts, shares.double())
    whitened = transform @ covariance @ transform.T
    torch.testing.assert_close(whitened, noise_sd**2 * torch.eye(7, dtype=torch.float64), atol=1e-6, rtol=0)


def test_least_squares_on_discounted_rows_is_generalised_least_squares() -> None:
    residuals, prompts = prompts_with_effects(0.9, 0.4, count=12)
    features = make_data(len(residuals), seed=3)[0]
    scores = features @ torch.arange(6, dtype=torch.float64) + residuals
    shares = measure_prompt_effects(residuals, prompts).shares(prompts)
    counts = torch.bincount(prompts)
    # The variance ratio that the shares imply, and the covariance that it makes.
    ratio = ((1 - shares[0]) ** -2 - 1) / counts[0]
    covariance = torch.eye(len(prompts), dtype=torch.float64) + ratio * (prompts[:, None] == prompts)
    inverse = torch.linalg.inv(covariance)
    expected = torch.linalg.solve(features.T @ inverse @ features, features.T @ inverse @ scores)
    rows = [discount_prompt_effects(x, prompts, shares) for x in (features, scores)]
    torch.testing.assert_close(fit_ridge(*rows, ridge=1e-9).weight, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("effect_sd", [0.0, 0.7])
def test_shares_of_prompt_effects_are_those_of_the_true_variances(effect_sd: float) -> None:
    residuals, prompts = prompts_with_effects(effect_sd, 0.5, count=3000)
    expected = torch.tensor([1 - 0.5 / math.sqrt(0.25 + n * effect_sd**2) for n in (3, 4, 5, 6)])
    torch.testing.assert_close(
        measure_prompt_effects(residuals, prompts).shares(prompts)[:4].float(), expected, atol=0.03, rtol=0
    )


def test_one_annotation_per_prompt_leaves_nothing_to_discount() -> None:
    residuals, prompts = torch.randn(9, generator=torch.Generator().manual_seed(0)), torch.arange(9)
    shares = measure_prompt_effects(residuals, prompts).shares(prompts)
    assert torch.equal(shares, torch.zeros(9, dtype=torch.float64))
    assert torch.equal(discount_prompt_effects(residuals, prompts, shares), residuals)


def test_nan_features_are_refused() -> None:
    features, scores = make_data()
    features[3, 2] = float("nan")
    with pytest.raises(UserError, match="positive definite"):
        fit_ridge(features, scores, RIDGE)


def test_theorem_constant_is_the_published_formula() -> None:
    features, scores = make_data()
    noise, delta, norm = 0.8, 0.05, 3.0
    log_det = torch.linalg.slogdet(gram_of(features)).logabsdet
    log_det_prior = features.shape[1] * math.log(RIDGE)
    expected = noise * math.sqrt(float(log_det - log_det_prior) + 2 * math.log(1 / delta)) + math.sqrt(RIDGE) * norm
    head = fit_ridge(features, scores, RIDGE)
    assert theorem_multiplier(head, noise=noise, delta=delta, parameter_norm=norm) == pytest.approx(expected, rel=1e-10)


def test_theorem_bound_holds_for_all_directions_at_once() -> None:
    generator = torch.Generator().manual_seed(7)
    noise, delta, draws = 0.5, 0.05, 200
    psi = torch.randn(6, generator=generator, dtype=torch.float64)
    directions = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    held = 0
    for draw in range(draws):
        features, _ = make_data(seed=draw)
        scores = features @ psi + noise * torch.randn(40, generator=generator, dtype=torch.float64)
        head = fit_ridge(features, scores, RIDGE)
        multiplier = theorem_multiplier(head, noise=noise, delta=delta, parameter_norm=float(psi.norm()))
        errors = (head.reward(directions) - directions @ psi).abs()
        worst = torch.sqrt((head.weight - psi) @ gram_of(features) @ (head.weight - psi))
        held += bool((errors <= multiplier * head.uncertainty(directions)).all() and worst <= multiplier)
    assert held >= (1 - delta) * draws


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_conformal_multiplier_is_the_smallest_ratio_with_enough_below_it(coverage: float) -> None:
    generator = torch.Generator().manual_seed(3)
    errors = torch.randn(57, generator=generator)
    uncertainties = torch.rand(57, generator=generator) + 0.5
    ratios = [abs(float(e)) / float(u) for e, u in zip(errors, uncertainties, strict=True)]
    needed = math.ceil(58 * coverage)
    expected = min(q for q in ratios if sum(r <= q for r in ratios) >= needed)
    assert conformal_multiplier(errors, uncertainties, coverage) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_conformal_bound_covers_a_new_annotation_as_often_as_stated(coverage: float) -> None:
    generator = torch.Generator().manual_seed(5)
    trials, count = 2000, 49
    uncertainties = torch.rand(trials, count + 1, generator=generator) + 0.2
    errors = uncertainties.sqrt() * torch.randn(trials, count + 1, generator=generator).pow(3)
    covered = 0
    for u, e in zip(uncertainties, errors, strict=True):
        multiplier = conformal_multiplier(e[:-1], u[:-1], coverage)
        covered += bool(e[-1].abs() <= multiplier * u[-1])
    deviation = math.sqrt(coverage * (1 - coverage) / trials)
    assert coverage - 3 * deviation <= covered / trials <= coverage + 1 / (count + 1) + 3 * deviation


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_too_few_annotations_are_refused_with_the_number_that_is_enough(coverage: float) -> None:
    with pytest.raises(UserError) as caught:
        conformal_multiplier(torch.empty(0), torch.empty(0), coverage)
    needed = int(re.search(r"(\d+) are needed", str(caught.value)).group(1))
    assert conformal_multiplier(torch.ones(needed), torch.ones(needed), coverage) == 1.0
    with pytest.raises(UserError):
        conformal_multiplier(torch.ones(needed - 1), torch.ones(needed - 1), coverage)


def test_effective_rank_is_the_dimension_for_white_features_and_one_for_a_line() -> None:
    assert effective_rank(torch.eye(7).repeat(5, 1)) == pytest.approx(7, rel=1e-6)
    line = torch.outer(torch.linspace(1, 2, 30), torch.arange(1.0, 8.0))
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    half = torch.eye(8)[:4].repeat(5, 1)
    assert effective_rank(half) == pytest.approx(4, rel=1e-6)


def test_trust_weight_of_the_median_is_the_papers() -> None:
    median = 0.123
    weights = trust_weight(torch.tensor([median, 2 * median, 0.0]), median, 0.05, 0.7)
    assert float(weights[0]) == pytest.approx(math.exp(-0.05 * 7.3 + 0.7), rel=1e-6)
    assert float(weights[1]) == pytest.approx(math.exp(-0.05 * 14.6 + 0.7), rel=1e-6)
    assert float(weights[2]) == pytest.approx(math.exp(0.7), rel=1e-6)
