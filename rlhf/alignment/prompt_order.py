"""The order of prompts over the updates of a run."""

import numpy as np


def prompts_of_update(prompt_ids: list[str], update: int, count: int, seed: int) -> list[str]:
    """Returns `count` prompts for an update: consecutive places in an endless series of seeded permutations.

    No prompt appears twice in an update, since both groups would be identical. When an update spans two
    permutations, the prompts that it has already used are moved behind its end in the second one.
    """
    size, first = len(prompt_ids), update * count
    last_epoch = (first + count - 1) // size
    places: list[int] = []
    order: list[int] = []
    for epoch in range(last_epoch + 1):
        begun = -epoch * size % count
        taken = set(order[begun - count :]) if begun else set()
        permutation = np.random.default_rng([seed, 19, epoch]).permutation(size).tolist()
        head = [index for index in permutation if index not in taken][:begun]
        ahead = set(head)
        order = head + [index for index in permutation if index not in ahead]
        if (epoch + 1) * size > first:
            places += order[max(0, first - epoch * size) : first + count - epoch * size]
    return [prompt_ids[index] for index in places]
