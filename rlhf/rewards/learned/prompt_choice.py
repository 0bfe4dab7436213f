"""What to annotate next: the prompts from which the reward model learns most, or a random share.

Whole prompts are chosen, with all their candidates: the reward is fitted to the differences between the samples
of one prompt, which a lone sample says nothing of, and people judge a prompt's samples side by side.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.rewards.learned.reward_model import load_reward
from rlhf.storage.tables import ANNOTATIONS, read_table

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
    names = progress_bar(list(counts), stage="uncertainty")
    order = order_by_uncertainty({name: model.score(*pictures(name)).uncertainty for name in names})
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


def order_by_uncertainty(uncertainty: Mapping[str, torch.Tensor]) -> list[str]:
    """All prompts, the one first whose candidates, by uncertainties [k], are least certain on average.

    A greedy D-optimal design, which takes up each choice into V before the next, was tried too, and learnt less from
    as many annotations; so did the same on candidates' differences of equal size (README, "Measured").
    """
    return sorted(sorted(uncertainty), key=lambda name: -float(uncertainty[name].mean()))


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
