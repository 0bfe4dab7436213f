"""The weighted sum of several rewards, each brought to the same scale."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores
from rlhf.storage.atomic_files import atomic_write_json

SCALES = "reward_scales.json"
"""File of a run that holds the scales of its rewards."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A reward is normalised to (reward - mean) / std."""

    mean: float = 0.0
    std: float = 1.0


def measure_scales(
    entries: Sequence[RewardEntry], scores: Mapping[str, Scores], samples_per_prompt: int, *, within_prompts: bool
) -> dict[str, Scale]:
    """Scales from the first rollout, that of the base policy; what an entry sets itself is taken from there.

    They are measured once and then fixed. Advantages are standardised again, so only the ratio of the scales
    matters; a running scale would change what the weights mean while the policy moves, blow up a reward
    that has been satisfied, and be one more state to restore. `within_prompts` takes the deviation among
    samples of one prompt (pooled), which is all that group advantages compare; else that of the batch.

    Rewards are [P * samples_per_prompt], prompt by prompt. Raises UserError where a reward does not vary.
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
    """Sum of weight x (reward - mean) / std, with what is known of its error; [B] each.

    The uncertainty is the sum of |weight| / std x uncertainty over the rewards that have one: the triangle
    inequality, which holds however the errors depend on each other, where the root of the sum of squares would
    suppose them independent. Rewards without a bound add nothing to it, so it bounds the others' share alone.
    The conformal width is summed alike.
    The trust weight is the geometric mean of the rewards' own by |weight|: that of the mean uncertainty.
    Without any bound, `uncertainty`, `width` and `trust_weight` are None.
    """
    total: torch.Tensor | None = None
    for name, part in scores.items():
        term = weights[name] * ((part.reward - scales[name].mean) / scales[name].std)
        total = term if total is None else total + term
    assert total is not None
    bounded = [name for name, part in scores.items() if part.trust_weight is not None and weights[name] != 0]
    if not bounded:
        return Scores(reward=total)
    share = sum(abs(weights[name]) for name in bounded)
    uncertainty, width, trust = torch.zeros_like(total), torch.zeros_like(total), torch.ones_like(total)
    for name in bounded:
        part, weight = scores[name], abs(weights[name])
        assert part.uncertainty is not None
        assert part.trust_weight is not None
        uncertainty = uncertainty + weight / scales[name].std * part.uncertainty
        width = width + weight / scales[name].std * (torch.inf if part.width is None else part.width)
        trust = trust * part.trust_weight ** (weight / share)
    return Scores(reward=total, uncertainty=uncertainty, trust_weight=trust, width=width)


def outlying_share(scores: Mapping[str, Scores]) -> float | None:
    """Share of bounded rewards beyond their calibrated quantile; None where no reward knows one."""
    verdicts = [part.is_outlying for part in scores.values() if part.is_outlying is not None]
    return float(torch.cat(verdicts).double().mean()) if verdicts else None


def join_scores(parts: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Verdicts on consecutive batches as one."""
    return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(parts: Sequence[Scores]) -> Scores:
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
    """Write them beside a run's metrics."""
    atomic_write_json(folder / SCALES, {name: asdict(scale) for name, scale in scales.items()})


def load_scales(folder: Path) -> dict[str, Scale]:
    """Those that the run began with; UserError where the file is missing or is no such record."""
    path = folder / SCALES
    try:
        return TypeAdapter(dict[str, Scale]).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); put it back, or set mean and std of every reward in a new run"
        ) from error
