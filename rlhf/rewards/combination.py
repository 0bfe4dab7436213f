"""Weighted sum of several rewards, each normalised to the same scale."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.scores import Reward, Scores
from rlhf.rewards.trust_weight import join_trust_weights
from rlhf.storage.atomic_files import atomic_write_json

SCALES = "reward_scales.json"
"""File in a run folder with the scales of its rewards."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and deviation that normalise a reward to (reward - mean) / std."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Reward that is the weighted sum of other rewards, as alignment climbs it."""

    rewards: Mapping[str, Reward]
    """Rewards by label; weights and scales have the same labels."""
    weights: Mapping[str, float]
    scales: Mapping[str, Scale]

    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images by every reward and combines the scores; shapes as in Reward, bound as in `combine`."""
        scores = {name: reward.score(images, masks, captions) for name, reward in self.rewards.items()}
        return combine(scores, self.weights, self.scales)


def measure_scales(
    entries: Sequence[RewardEntry], scores: Mapping[str, Scores], samples_per_prompt: int, *, within_prompts: bool
) -> dict[str, Scale]:
    """Measures scales on the first rollout, that of the base policy; `mean` and `std` of an entry take precedence.

    The scales are measured once and then fixed. Advantages are standardised again, so only the ratio of the scales
    matters. Running scales would change the meaning of the weights while the policy moves, would inflate a reward
    that is satisfied, and would be one more state to restore. With `within_prompts` the deviation is that among
    samples of one prompt (pooled), since group advantages compare nothing else; otherwise it is the batch's.

    Shapes: rewards [P * samples_per_prompt], prompt by prompt. Raises UserError if a reward does not vary.
    """
    scales = {}
    for entry in entries:
        reward = scores[entry.label].reward.double()
        groups = reward.view(-1, samples_per_prompt) if within_prompts else reward[None]
        std = entry.std if entry.std is not None else float(groups.var(dim=1).mean().sqrt())
        if not std > 1e-9 * (1 + float(reward.abs().max())):
            raise UserError(
                f"align: reward {entry.label} is the same for all samples of a prompt in the first rollout, so its "
                f"scale cannot be measured; set `std` (and `mean`) of {entry.label}, or leave it out"
            )
        scales[entry.label] = Scale(mean=float(reward.mean()) if entry.mean is None else entry.mean, std=std)
    return scales


def combine(scores: Mapping[str, Scores], weights: Mapping[str, float], scales: Mapping[str, Scale]) -> Scores:
    """Returns the sum of weight x (reward - mean) / std, with the bound on its error; every field is [B].

    The uncertainty is the sum of |weight| / std x uncertainty over the rewards that have one. This triangle
    inequality holds however the errors depend on each other; the root of the sum of squares would assume that
    they are independent. Rewards without a bound add nothing to it, so it bounds the share of the others only.
    The width is summed in the same way, and `join_trust_weights` joins the rewards' trust weights. If no reward has a
    bound, `uncertainty`, `width` and `trust_weight` are None.
    """
    total: torch.Tensor | None = None
    for name, part in scores.items():
        term = weights[name] * ((part.reward - scales[name].mean) / scales[name].std)
        total = term if total is None else total + term
    assert total is not None
    trusts = {n: part.trust_weight for n, part in scores.items() if part.trust_weight is not None and weights[n] != 0}
    if not trusts:
        return Scores(reward=total)
    uncertainty, width = torch.zeros_like(total), torch.zeros_like(total)
    for name in trusts:
        part, weight = scores[name], abs(weights[name])
        assert part.uncertainty is not None
        uncertainty = uncertainty + weight / scales[name].std * part.uncertainty
        width = width + weight / scales[name].std * (torch.inf if part.width is None else part.width)
    trust = join_trust_weights(trusts, weights)
    return Scores(reward=total, uncertainty=uncertainty, trust_weight=trust, width=width)


def outlying_share(scores: Mapping[str, Scores]) -> float | None:
    """Returns the share of scores beyond their calibrated quantile; None if no reward has a quantile."""
    verdicts = [part.is_outlying for part in scores.values() if part.is_outlying is not None]
    return float(torch.cat(verdicts).double().mean()) if verdicts else None


def join_scores(parts: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Joins every reward's scores of consecutive batches."""
    return {name: join_batches([part[name] for part in parts]) for name in parts[0]}


def join_batches(parts: Sequence[Scores]) -> Scores:
    """Joins one reward's scores of consecutive batches."""
    return Scores(
        reward=torch.cat([part.reward for part in parts]),
        uncertainty=_cat([part.uncertainty for part in parts]),
        trust_weight=_cat([part.trust_weight for part in parts]),
        width=_cat([part.width for part in parts]),
        is_outlying=_cat([part.is_outlying for part in parts]),
    )


def _cat(columns: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    known = [column for column in columns if column is not None]
    assert len(known) in (0, len(columns)), "a reward has a bound for all images or for none"
    return torch.cat(known) if known else None


def save_scales(scales: Mapping[str, Scale], folder: Path) -> None:
    """Writes the scales beside a run's metrics."""
    atomic_write_json(folder / SCALES, {name: asdict(scale) for name, scale in scales.items()})


def load_scales(folder: Path) -> dict[str, Scale]:
    """Reads the scales that the run began with; raises UserError if the file is missing or damaged."""
    path = folder / SCALES
    try:
        return TypeAdapter(dict[str, Scale]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); put it back, or set mean and std of every reward in a new run"
        ) from error
