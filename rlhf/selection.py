"""What to annotate next: the prompts from which the reward model learns most, or a random share.

Whole prompts are chosen, with all their candidates: the reward is fitted to the differences between the samples
of one prompt, which a lone sample says nothing of, and people judge a prompt's samples side by side.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rlhf.bound import PromptEffects, discount_prompt_effects
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.reward_model import RewardModel, load_reward
from rlhf.tables import ANNOTATIONS, read_table

Pictures = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""By prompt id: candidates [k, 3, H, W] in [-1, 1] and their mask, [k, 1, H, W]."""


def select_prompts(
    counts: Mapping[str, int],
    pictures: Pictures,
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None = None,
    earlier: Sequence[Path] = (),
) -> list[str]:
    """Prompts to annotate, the first first: `random`, or `uncertain` by the reward in a folder.

    `counts` holds the candidates of each prompt; no more than `limit` of them are chosen, None takes all.
    Prompts that folders of `earlier` annotations hold come after those that they do not.
    Raises UserError where `uncertain` comes without a reward folder or the other way round, the folder
    is incomplete, or no whole prompt is within the limit.
    """
    if (select == "uncertain") != (reward is not None):
        raise UserError("annotate: --select uncertain and --reward belong together; give both or neither")
    if reward is None:
        order = order_randomly(list(counts), seed=seed)
        return take_prompts(annotated_last(order, earlier), counts, limit)
    model = load_reward(reward)
    features = {name: model.score(*pictures(name)).features for name in progress_bar(list(counts), stage="uncertainty")}
    effects = model.calibration.prompt_effects if isinstance(model, RewardModel) else None
    order = order_by_uncertainty(features, model.gram_inverse(), effects)
    return take_prompts(annotated_last(order, earlier), counts, limit)


def annotated_last(order: list[str], earlier: Sequence[Path]) -> list[str]:
    """The order, but prompts that fewer folders of `earlier` annotations hold come before all others.

    Without it the seed's random order, the same in every round, would give each round the same prompts.
    """
    prompts = ({row["prompt_id"] for row in read_table(folder, ANNOTATIONS)} for folder in earlier)
    times = Counter(name for names in prompts for name in names)
    return sorted(order, key=lambda name: times[name])


def order_randomly(prompt_ids: list[str], *, seed: int) -> list[str]:
    """All prompts in an order that only the seed decides."""
    order = sorted(prompt_ids)
    random.Random(f"{seed} annotate").shuffle(order)
    return order


def order_by_uncertainty(
    features: Mapping[str, torch.Tensor], gram_inverse: torch.Tensor, effects: PromptEffects | None = None
) -> list[str]:
    """All prompts, the one first from whose candidates the reward learns most, given those before it.

    Greedy D-optimal design (Fedorov, Theory of Optimal Experiments, 1972): a prompt's gain is the growth
    of log det V per candidate, which for one candidate is log(1 + u^2) with its uncertainty
    u = sqrt(z' V^-1 z). V takes up each choice before the next, so that of near-duplicates the second
    comes late. Summed gains are submodular, so greedy is within 1 - 1/e of the best (Nemhauser et al., 1978).
    Annotations are discounted by the prompts' effects, as the update of the head will discount them.

    Args:
        features: by prompt, float [k, d] of its candidates.
        gram_inverse: float64 [d, d], V^-1.
        effects: variances of the annotations; None takes the rows as they are.
    """
    remaining = {name: _discounted(z, effects) for name, z in sorted(features.items())}
    inverse = gram_inverse.double().clone()
    order: list[str] = []
    while remaining:
        gains = log_det_gains(list(remaining.values()), inverse)
        chosen = list(remaining)[int(gains.argmax())]
        for z in remaining.pop(chosen):
            inverse = update_inverse(inverse, z)
        order.append(chosen)
    return order


def log_det_gains(groups: list[torch.Tensor], inverse: torch.Tensor) -> torch.Tensor:
    """log det(I + Z V^-1 Z') / k of each group Z [k, d]: what its rows add to log det V, per row; returns [P]."""
    padded = torch.nn.utils.rnn.pad_sequence(groups, batch_first=True)  # rows of zeros add nothing
    inner = padded @ inverse @ padded.transpose(1, 2)
    counts = torch.tensor([len(group) for group in groups])
    return torch.logdet(torch.eye(inner.shape[1], dtype=inner.dtype) + inner) / counts


def update_inverse(inverse: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """(V + z z')^-1 from V^-1 [d, d] and z [d], symmetric (Sherman and Morrison, 1950)."""
    moved = inverse @ z
    return inverse - torch.outer(moved, moved) / (1 + z @ moved)


def take_prompts(order: list[str], counts: Mapping[str, int], limit: int | None) -> list[str]:
    """The first prompts of `order` whose candidates together are no more than `limit`; what is too large is skipped.

    Raises UserError where no prompt fits.
    """
    if limit is None:
        return order
    chosen, left = [], limit
    for name in order:
        if counts[name] <= left:
            chosen.append(name)
            left -= counts[name]
    if not chosen:
        raise UserError(
            f"annotate: --limit {limit} is less than the {min(counts.values())} candidates of a prompt, and whole "
            "prompts are annotated; raise it"
        )
    return chosen


def _discounted(z: torch.Tensor, effects: PromptEffects | None) -> torch.Tensor:
    if effects is None:
        return z.double()
    same = torch.zeros(len(z), dtype=torch.long)
    return discount_prompt_effects(z.double(), same, effects.shares(same))
