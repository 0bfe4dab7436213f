"""Weighs the samples of an update: from scores to advantages and trust weights. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.errors import UserError
from rlhf.rewards.combination import Scale, combine, join_scores, measure_scales, outlying_share
from rlhf.rewards.scores import Scores
from rlhf.rewards.trust_weight import choose_trust, normalise_trust


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """Weights of an update's samples in the loss, and the figures of their rewards."""

    advantages: torch.Tensor
    """float32 [B]."""
    trust_weights: torch.Tensor
    """float32 [B], divided by their mean over the update."""
    scales: Mapping[str, Scale]
    """Scale of each reward in the weighted sum."""
    metrics: dict[str, float]


def weigh(batches: Sequence[Mapping[str, Scores]], config: RunConfig, scales: Mapping[str, Scale] | None) -> Weighed:
    """Weighs all samples of an update, given the scores of its micro-batches by reward.

    A micro-batch holds complete groups of `align.samples_per_prompt` samples. `scales` are those that the run began
    with; if None, they are measured here. Raises UserError if a scale cannot be measured, or if the lower bound is
    climbed and the rewards have none.
    """
    align, by_reward = config.align, join_scores(batches)
    if scales is None:
        scales = _measure_scales(by_reward, config)
    weights = {entry.label: entry.weight for entry in config.rewards} or {"model": 1.0}
    combined = combine(by_reward, weights, scales)
    trust = choose_trust(align.trust, combined.reward, combined.trust_weight)
    normalised = normalise_trust(trust)
    grouped = combined.reward.float().view(-1, align.samples_per_prompt)
    climbed = climbed_reward(combined, align).view(-1, align.samples_per_prompt)
    return Weighed(
        advantages=algorithm_of(align).compute_advantages(climbed, align).flatten(),
        trust_weights=normalised,
        scales=scales,
        metrics={
            "reward": float(combined.reward.float().mean()),
            "climbed": float(climbed.mean()),
            "reward_std_in_group": float(grouped.std(dim=1).mean()),
            "trust_weight": float(trust.mean()),
            "trust_weight_std": float(normalised.std()),
            "effective_sample_share": float(normalised.sum() ** 2 / normalised.square().sum() / len(normalised)),
        }
        | reward_metrics(by_reward, combined),
    )


def _measure_scales(by_reward: Mapping[str, Scores], config: RunConfig) -> dict[str, Scale]:
    """Scales of the rewards in `rewards:`; a reward folder alone keeps its own scale."""
    if not config.rewards:
        return {"model": Scale()}
    is_grouped = algorithm_of(config.align).compares_within_prompts
    return measure_scales(config.rewards, by_reward, config.align.samples_per_prompt, within_prompts=is_grouped)


def climbed_reward(scores: Scores, align: AlignConfig) -> torch.Tensor:
    """Returns the reward [B], float32, that advantages compare: the reward itself or its lower bound.

    Raises UserError if the lower bound is asked for and no reward has a calibrated one.
    """
    if align.climbs == "reward":
        return scores.reward.float()
    if scores.width is None or not scores.width.isfinite().all():
        raise UserError(
            "align.climbs is `lower_bound`, but no reward here has a calibrated bound; climb `reward`, or name a "
            "folder of `rlhf reward`"
        )
    return (scores.reward - scores.width).float()


def reward_metrics(by_reward: Mapping[str, Scores], combined: Scores) -> dict[str, float]:
    """Returns uncertainty and share out of distribution if they are known, and the mean of each of several rewards."""
    metrics = {}
    if combined.uncertainty is not None:
        metrics["uncertainty"] = float(combined.uncertainty.mean())
    ood_share = outlying_share(by_reward)
    if ood_share is not None:
        metrics["ood_share"] = ood_share
    if len(by_reward) > 1:
        metrics |= {f"rewards/{name}": float(part.reward.mean()) for name, part in by_reward.items()}
    return metrics
