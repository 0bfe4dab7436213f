"""What to annotate next: the prompts from which the reward model learns most, or a random share.

Whole prompts are chosen, with all their candidates: the reward is fitted to the differences between the samples
of one prompt, which a lone sample says nothing of, and people judge a prompt's samples side by side.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rlhf.data.annotation_items import AnnotationItems
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.storage.images import decode_image, image_to_tensor, mask_to_tensor
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
    order = order_by_uncertainty({name: _known(model.score(*pictures(name)).uncertainty) for name in names})
    return take_prompts(annotated_last(order, earlier), counts, limit)


def _known(uncertainty: torch.Tensor | None) -> torch.Tensor:
    assert uncertainty is not None, "every reward folder gives an uncertainty"
    return uncertainty


def select_candidates(
    prompts: dict[str, Prompt],
    candidates: dict[tuple[str, int], torch.Tensor],
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None,
    earlier: Sequence[Path] = (),
) -> dict[tuple[str, int], torch.Tensor]:
    """The candidates of the prompts that `select_prompts` chooses, in the order in which they are to be annotated."""
    keys: dict[str, list[tuple[str, int]]] = {}
    for key in candidates:
        keys.setdefault(key[0], []).append(key)

    def pictures(prompt_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([candidates[key] for key in keys[prompt_id]])
        return images, prompts[prompt_id].mask.expand(len(images), -1, -1, -1)

    counts = {name: len(samples) for name, samples in keys.items()}
    chosen = select_prompts(counts, pictures, select, reward, seed=seed, limit=limit, earlier=earlier)
    return {key: candidates[key] for name in chosen for key in keys[name]}


def order_prompts(
    items: AnnotationItems,
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None = None,
    earlier: Sequence[Path] = (),
) -> tuple[str, ...]:
    """Prompts in the order of annotation, `random` or `uncertain`; no more than have `limit` candidates together.

    Those that folders of `earlier` annotations hold come last.

    Raises UserError where `uncertain` comes without a reward folder, or it is incomplete.
    """

    def pictures(prompt_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        samples = items.candidates[prompt_id].values()
        images = torch.stack([image_to_tensor(decode_image(data)) for data in samples])
        return images, mask_to_tensor(items.masks[prompt_id]).expand(len(images), -1, -1, -1)

    counts = {name: len(samples) for name, samples in items.candidates.items()}
    return tuple(select_prompts(counts, pictures, select, reward, seed=seed, limit=limit, earlier=earlier))


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
