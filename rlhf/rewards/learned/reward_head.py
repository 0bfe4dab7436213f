"""The ridge head: learned on part A, corrected on part B, whose scores alone the bound's theorem is about."""

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
"""What lambda is chosen from."""


def fit_first_head(features: torch.Tensor, data: AnnotatedImages, ridge: float) -> tuple[RidgeHead, PromptEffects]:
    """Ridge on features [N, d] of annotations, whose prompts' common errors are estimated and discounted.

    Without that, what tells prompts apart drowns the smaller differences between samples of one prompt,
    which alone alignment can change. Prompts whose samples differ much weigh less.
    """
    prompts = data.prompt_numbers()
    z, y = features.double(), data.scores.double()
    # The residuals are those of the differences within prompts alone, which the prompts' errors cannot mislead.
    whole = torch.ones(int(prompts.max()) + 1)
    within = fit_ridge(discount_prompt_effects(z, prompts, whole), discount_prompt_effects(y, prompts, whole), ridge)
    effects = measure_prompt_effects(y - within.reward(z), prompts)
    z, y = _discounted(features, data, effects)
    weights = prompt_weights(data)
    return fit_ridge(z * weights[:, None], y * weights, ridge), effects


def correct_head(
    first: RidgeHead, effects: PromptEffects, features: torch.Tensor, data: AnnotatedImages, ridge: float
) -> RidgeHead:
    """Ridge on other photographs, towards the first head: nothing but `data` has seen its scores.

    The first head and the effects come from part A, so V and the correction are those of a ridge
    regression on fixed features with independent noise, as the theorem supposes.
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
    """lambda, from the one of `RIDGES` whose correction of a head predicts a third part of A best.

    A's photographs are split in three: a head is fitted on the first, corrected on the second, judged
    on the third; then in turn. The head of all of A has seen three times as much, so the variance that
    is left to correct is a third, and lambda three times the one that was best.
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
