"""Plain code on learner rank 0: chooses prompts, has them sampled and scored, weighs them, shares the work."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch

from actors.dispatch import Dispatcher, FinishedTask, PoisonPrompt
from actors.incidents import Incidents
from actors.messages import BatchShare, RolloutTask, UpdateWork, WeightsNotice
from actors.quarantine import PutAside
from actors.queue_times import Flow
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.errors import UserError
from rlhf.rewards.combination import (
    Scale,
    combine,
    join_scores,
    load_scales,
    measure_scales,
    outlying_share,
    save_scales,
)
from rlhf.rewards.scores import Scores

CONSTANT_TRUST = 1.4
"""Weight of `align.trust: constant`: the mean that the paper chose, which division by the mean takes away again."""
TASKS_READ_AT_ONCE = 16
"""Their prompts are in memory together: a row group of the table is then read once for several."""


class Coordinator:
    """Everything random in it depends on (seed, update) and the prompts put aside, so it has no state to lose.

    The scales of several rewards are measured in update 0, written into the folder `out`, and read from
    then on; so are the prompts that were put aside.
    """

    def __init__(
        self,
        config: RunConfig,
        prompts: PromptTable,
        dispatcher: Dispatcher,
        incidents: Incidents,
        *,
        ranks: int,
        out: Path,
    ) -> None:
        self._config, self._prompts, self._dispatcher, self._ranks = config, prompts, dispatcher, ranks
        self._incidents, self._out, self._put_aside = incidents, out, PutAside(out)
        self._groups = config.align.micro_batch_size // config.align.samples_per_prompt
        self._weights = {entry.label: entry.weight for entry in config.rewards} or {"model": 1.0}

    def collect(
        self, update: int, weights: dict[str, torch.Tensor], canary: float | None = None, *, version: int | None = None
    ) -> UpdateWork:
        """One rollout, scored and divided among the learner ranks; `version` of the weights, `update` by default.

        Raises UserError where a reward is not finite, or too many prompts had to be put aside.
        """
        started, busy, flow = time.perf_counter(), self._busy(), Flow()
        repeated = self._dispatcher.repeated
        version = update if version is None else version
        notice = WeightsNotice.publish(weights, version, canary)
        count = self._config.align.prompts_per_update // self._groups
        while True:
            try:
                finished = self._dispatcher.run(notice, self._tasks(update), flow, count=count)
                break
            except PoisonPrompt as poison:
                self._put_aside.add(poison.prompt_id, "its workers died repeatedly, also when it was alone")
        by_reward = join_scores([task.scores for task in finished])
        combined = combine(by_reward, self._weights, scales_of_update(self._config, self._out, update, by_reward))
        batches, metrics = self._weigh(combined, finished)
        duration = time.perf_counter() - started
        metrics |= reward_metrics(by_reward, combined) | self._incidents.metrics() | flow.metrics()
        metrics |= {f"{role}_idle_share": 1 - s / duration for role, s in self._busy(since=busy).items()}
        metrics |= {
            "rollout_s": duration,
            "images_per_s": len(combined.reward) / duration,
            "policy_version": version,
            "staleness": update - version,
            "sampler_forward_images": sum(task.forward_images for task in finished),
            "weights_bytes": sum(tensor.nbytes for tensor in weights.values()),
            "prompts_put_aside": len(self._put_aside.reasons),
            "tasks_repeated": self._dispatcher.repeated - repeated,
        }
        return UpdateWork(shares=share_out(batches, self._ranks), metrics=metrics, checksum=notice.checksum)

    def _busy(self, since: Mapping[str, float] | None = None) -> dict[str, float]:
        """Seconds in calls, by role and per worker."""
        crews = self._dispatcher.crews
        return {c.role: c.busy_s / len(c.workers) - (since[c.role] if since else 0.0) for c in crews}

    def _tasks(self, update: int) -> Iterator[RolloutTask]:
        """Prompts travel with their tasks, some of which are read from disk at once."""
        align, seed = self._config.align, self._config.seed
        plan = algorithm_of(align).plan_rollout(align, update, seed)
        chosen = prompts_of_update(self._prompts.ids, update, align.prompts_per_update, seed)
        chosen = self._put_aside.substitute(chosen, self._prompts.ids, key=(seed, 23, update))
        step = self._groups
        for first in range(0, len(chosen), TASKS_READ_AT_ONCE * step):
            read = chosen[first : first + TASKS_READ_AT_ONCE * step]
            rows = dict(zip(read, self._prompts.rows(read), strict=True))
            for own in (read[i : i + step] for i in range(0, len(read), step)):
                yield RolloutTask(
                    prompt_ids=tuple(own),
                    prompts=[ray.put({name: rows[name] for name in own})],
                    samples_per_prompt=align.samples_per_prompt,
                    plan=plan,
                    seed_key=(seed, "align", update),
                )

    def _weigh(self, scores: Scores, finished: Sequence[FinishedTask]) -> tuple[list[BatchShare], dict[str, float]]:
        """Advantages over complete groups, and what of the trust weights is measured.

        Raises UserError where the lower bound is climbed, and the rewards have none.
        """
        align = self._config.align
        reward, trust = scores.reward.float(), weigh_trust(scores, align)
        # A double holds the sum of equal floats exactly, so a constant is divided to 1 whatever their number.
        normalised = (trust.double() / trust.double().mean()).float()
        grouped = reward.view(-1, align.samples_per_prompt)
        climbed = climbed_reward(scores, align).view(-1, align.samples_per_prompt)
        advantages = algorithm_of(align).compute_advantages(climbed, align).flatten()
        size = align.micro_batch_size
        batches = [
            BatchShare(
                trajectories=[task.trajectories],
                images=[] if task.images is None else [task.images],
                # Clones: a part of a tensor travels with all of it.
                advantages=a.clone(),
                trust_weights=w.clone(),
                prompt_ids=task.prompt_ids,
                scores=task.scores,
            )
            for task, a, w in zip(finished, advantages.split(size), normalised.split(size), strict=True)
        ]
        return batches, {
            "reward": float(reward.mean()),
            "climbed": float(climbed.mean()),
            "reward_std_in_group": float(grouped.std(dim=1).mean()),
            "trust_weight": float(trust.mean()),
            "trust_weight_std": float(normalised.std()),
            "effective_sample_share": float(normalised.sum() ** 2 / normalised.square().sum() / len(normalised)),
        }


def weigh_trust(scores: Scores, align: AlignConfig) -> torch.Tensor:
    """Trust weights [B], float32, not divided by their mean; 1 where none are asked for, or no reward has a bound."""
    if align.trust == "constant":
        return torch.full_like(scores.reward, CONSTANT_TRUST).float()
    if align.trust == "none" or scores.trust_weight is None:
        return torch.ones_like(scores.reward).float()
    return scores.trust_weight.float()


def climbed_reward(scores: Scores, align: AlignConfig) -> torch.Tensor:
    """What advantages are made of, [B], float32; UserError where that is a lower bound, and there is none."""
    if align.climbs == "reward":
        return scores.reward.float()
    if scores.width is None or not scores.width.isfinite().all():
        raise UserError(
            "align.climbs is `lower_bound`, but no reward here has a calibrated bound; climb `reward`, or name a "
            "folder of `rlhf reward`"
        )
    return (scores.reward - scores.width).float()


def scales_of_update(config: RunConfig, out: Path, update: int, by_reward: Mapping[str, Scores]) -> dict[str, Scale]:
    """Of the rewards in `rewards:`, measured in update 0; the reward folder alone is taken as it is."""
    entries, align = config.rewards, config.align
    is_grouped = algorithm_of(align).compares_within_prompts
    if not entries:
        return {"model": Scale()}
    if update > 0:
        return load_scales(out)
    scales = measure_scales(entries, by_reward, align.samples_per_prompt, within_prompts=is_grouped)
    save_scales(scales, out)
    return scales


def share_out(batches: list[BatchShare], ranks: int) -> list[list[BatchShare]]:
    """The same number of micro-batches for each rank, whatever their number: the global batch stays as it is.

    DeepSpeed takes the mean over all of them, those of weight 0 that fill up included, so the others
    weigh more.
    """
    per_rank = -(-len(batches) // ranks)
    padding = per_rank * ranks - len(batches)
    weight = (len(batches) + padding) / len(batches)
    weighed = [replace(batch, weight=weight) for batch in batches]
    weighed += [replace(batch, weight=0.0) for batch in weighed[:1] * padding]
    return [weighed[rank * per_rank : (rank + 1) * per_rank] for rank in range(ranks)]


def prompts_of_update(prompt_ids: list[str], update: int, count: int, seed: int) -> list[str]:
    """The prompts of an update: consecutive places in an endless series of seeded permutations.

    None comes twice in an update, whose groups would be the same to the last bit: where an update goes on into
    the next permutation, those that it has already come there after its end.
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


def reward_metrics(by_reward: Mapping[str, Scores], combined: Scores) -> dict[str, float]:
    """Uncertainty and share out of distribution, where they are known; and the mean of each of several rewards."""
    metrics = {}
    if combined.uncertainty is not None:
        metrics["uncertainty"] = float(combined.uncertainty.mean())
    ood_share = outlying_share(by_reward)
    if ood_share is not None:
        metrics["ood_share"] = ood_share
    if len(by_reward) > 1:
        metrics |= {f"rewards/{name}": float(part.reward.mean()) for name, part in by_reward.items()}
    return metrics
