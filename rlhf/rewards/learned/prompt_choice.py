"""Chooses the prompts to annotate next: those from which the reward model learns most, or a random share.

Whole prompts are chosen, with all their candidates, since the reward is fitted to differences between samples of one
prompt, and people judge a prompt's samples side by side.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rlhf.data.annotation.items import AnnotationItems
from rlhf.data.candidate_table import Key
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import AnyPrompt
from rlhf.errors import UserError
from rlhf.progress import progress_bar
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.storage.images import decode_image, image_to_tensor, mask_to_tensor
from rlhf.storage.tables import ANNOTATIONS, read_table

ShowPrompt = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""Function from a prompt id to candidates [k, 3, H, W] in [-1, 1] and their masks [k, 1, H, W]."""


def choose_prompts(
    counts: Mapping[str, int],
    pictures: ShowPrompt,
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None = None,
    earlier: Sequence[Path] = (),
) -> list[str]:
    """Returns the prompts to annotate, in order: `random`, or `uncertain` by the reward in a folder.

    `counts` holds the number of candidates of each prompt. Together the chosen prompts have at most `limit`
    candidates; None takes all. Prompts in folders of `earlier` annotations come last.

    Raises UserError if `uncertain` comes without a reward folder or a folder without `uncertain`, the folder is
    incomplete, or no whole prompt is within the limit.
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


def choose_candidates(
    prompts: Mapping[str, AnyPrompt],
    candidates: Mapping[Key, torch.Tensor],
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None,
    earlier: Sequence[Path] = (),
) -> list[Key]:
    """Returns the keys of the candidates of the prompts that `choose_prompts` chooses, in the order of annotation."""
    keys: dict[str, list[Key]] = {}
    for key in candidates:
        keys.setdefault(key[0], []).append(key)

    def pictures(prompt_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        return Pictures(prompts, candidates).show(keys[prompt_id])

    counts = {name: len(samples) for name, samples in keys.items()}
    chosen = choose_prompts(counts, pictures, select, reward, seed=seed, limit=limit, earlier=earlier)
    return [key for name in chosen for key in keys[name]]


def order_prompts(
    items: AnnotationItems,
    select: str,
    reward: Path | None,
    *,
    seed: int,
    limit: int | None = None,
    earlier: Sequence[Path] = (),
) -> tuple[str, ...]:
    """Returns the ids of the prompts among `items` that `choose_prompts` chooses, in the order of annotation."""

    def pictures(prompt_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        samples = items.candidates[prompt_id].values()
        images = torch.stack([image_to_tensor(decode_image(data)) for data in samples])
        return images, mask_to_tensor(items.masks[prompt_id]).expand(len(images), -1, -1, -1)

    counts = {name: len(samples) for name, samples in items.candidates.items()}
    return tuple(choose_prompts(counts, pictures, select, reward, seed=seed, limit=limit, earlier=earlier))


def annotated_last(order: list[str], earlier: Sequence[Path]) -> list[str]:
    """Sorts prompts by the number of folders of `earlier` annotations that hold them, keeping the order otherwise.

    Without it every round would get the same prompts, since the seed's random order is the same in each.
    """
    prompts = ({row["prompt_id"] for row in read_table(folder, ANNOTATIONS)} for folder in earlier)
    times = Counter(name for names in prompts for name in names)
    return sorted(order, key=lambda name: times[name])


def order_randomly(prompt_ids: list[str], *, seed: int) -> list[str]:
    """Returns all prompts in an order that depends on the seed only."""
    order = sorted(prompt_ids)
    random.Random(f"{seed} annotate").shuffle(order)
    return order


def order_by_uncertainty(uncertainty: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns all prompts, those first whose candidates have the highest mean uncertainty; uncertainties [k] by id.

    A greedy D-optimal design, which adds each choice to V before the next, learned less from the same number of
    annotations, on candidates and on their differences alike (benchmarks/studies/selection.py).
    """
    return sorted(sorted(uncertainty), key=lambda name: -float(uncertainty[name].mean()))


def take_prompts(order: list[str], counts: Mapping[str, int], limit: int | None) -> list[str]:
    """Returns the first prompts of `order` with at most `limit` candidates together, skipping those that do not fit.

    Raises UserError if no prompt fits.
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
