"""Fits the ridge head: first on part A, then corrected on part B, whose scores are those of the bound's theorem."""

import torch

from rlhf.data.annotated_images import AnnotatedImages, prompt_weights, split_photographs
from rlhf.rewards.learned.bound import (
    PromptEffects,
    RidgeHead,
    discount_prompt_effects,
    fit_ridge,
    measure_prompt_effects,
)

RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Candidates for lambda."""


def fit_first_head(features: torch.Tensor, data: AnnotatedImages, ridge: float) -> tuple[RidgeHead, PromptEffects]:
    """Fits a ridge to features [N, d] of annotations; errors common to a prompt are estimated and discounted.

    Otherwise the differences between prompts would drown the smaller ones between samples of one prompt, and
    alignment can change only those. Prompts whose samples differ much weigh less.
    """
    prompts = data.prompt_numbers()
    z, y = features.double(), data.scores.double()
    # Residuals of a fit to differences within prompts, which errors common to a prompt do not affect.
    whole = torch.ones(int(prompts.max()) + 1)
    within = fit_ridge(discount_prompt_effects(z, prompts, whole), discount_prompt_effects(y, prompts, whole), ridge)
    effects = measure_prompt_effects(y - within.reward(z), prompts)
    z, y = _discounted(features, data, effects)
    weights = prompt_weights(data)
    return fit_ridge(z * weights[:, None], y * weights, ridge), effects


def correct_head(
    first: RidgeHead, effects: PromptEffects, features: torch.Tensor, data: AnnotatedImages, ridge: float
) -> RidgeHead:
    """Fits a ridge to features [N, d] of other photographs, pulled to the first head.

    The first head and the effects come from part A and have not seen the scores of `data`. So V and the correction
    are those of a ridge regression on fixed features with independent noise, as the theorem assumes.
    """
    return fit_ridge(*_discounted(features, data, effects), ridge, prior=first.weight)


def _discounted(
    features: torch.Tensor, data: AnnotatedImages, effects: PromptEffects
) -> tuple[torch.Tensor, torch.Tensor]:
    prompts = data.prompt_numbers()
    shares = effects.shares(prompts)
    z, y = features.double(), data.scores.double()
    return discount_prompt_effects(z, prompts, shares), discount_prompt_effects(y, prompts, shares)


def choose_ridge(features: torch.Tensor, data: AnnotatedImages, first_ridge: float, seed: int) -> float:
    """Chooses lambda by cross-validation on part A.

    A's photographs are split in three: a head is fitted on the first third, corrected on the second and judged on
    the third, in every rotation. The head of all of A has seen three times as much, so a third of the variance is
    left to correct: lambda is three times the best of `RIDGES`.
    """
    parts = split_photographs(data.photographs, (1.0, 1.0, 1.0), seed)
    rows = [torch.tensor([name in part for name in data.photographs]) for part in parts]
    subsets = [data.of(part) for part in parts]
    errors = dict.fromkeys(RIDGES, 0.0)
    for turn in range(3):
        i, j, k = turn, (turn + 1) % 3, (turn + 2) % 3
        first, effects = fit_first_head(features[rows[i]], subsets[i], first_ridge)
        z, y = _discounted(features[rows[k]], subsets[k], effects)
        weights = prompt_weights(subsets[k])
        for ridge in RIDGES:
            head = correct_head(first, effects, features[rows[j]], subsets[j], ridge)
            errors[ridge] += float(((y - head.reward(z)) * weights).square().sum())
    return 3.0 * min(RIDGES, key=lambda ridge: errors[ridge])
