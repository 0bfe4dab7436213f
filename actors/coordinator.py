"""Plain code on learner rank 0: hands out rollouts, proves the weights, completes groups, shares the work."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import ray
import torch

from actors.messages import BatchShare, RolloutReceipt, RolloutTask, UpdateWork, WeightsNotice
from rlhf.algorithms import algorithm_of
from rlhf.config import RunConfig
from rlhf.errors import UserError
from rlhf.policy import checksum
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


class Coordinator:
    """Everything random in it depends on (seed, update) alone, so it has no state to lose.

    The scales of several rewards are measured in update 0, written into the folder `out`, and read from then on.
    """

    def __init__(
        self,
        config: RunConfig,
        prompt_ids: list[str],
        samplers: list,
        scorers: list,
        ranks: int,
        out: Path | None = None,
    ) -> None:
        self._config, self._prompt_ids = config, prompt_ids
        self._samplers, self._scorers, self._ranks = samplers, scorers, ranks
        self._out = out
        self._weights = {entry.label: entry.weight for entry in config.rewards} or {"model": 1.0}

    def collect(self, update: int, weights: dict[str, torch.Tensor]) -> UpdateWork:
        """One rollout of the current weights, scored and divided among the learner ranks.

        Raises UserError where a sampler cannot prove the version it sampled with, or a reward is
        not finite.
        """
        started = time.perf_counter()
        notice = self.publish(update, weights)
        tasks = self._tasks(update)
        results = [
            self._samplers[i % len(self._samplers)].rollout.options(num_returns=2).remote(notice, task)
            for i, task in enumerate(tasks)
        ]
        verdicts = [self._scorers[i % len(self._scorers)].score.remote(*result) for i, result in enumerate(results)]
        receipts: list[RolloutReceipt] = ray.get([receipt for receipt, _ in results])
        check_receipts(receipts, notice)
        scores: list[dict[str, Scores]] = ray.get(verdicts)
        check_rewards(scores, receipts)
        by_reward = join_scores(scores)
        combined = combine(by_reward, self._weights, self._scales(update, by_reward))
        batches, metrics = self._weigh(combined, [trajectories for _, trajectories in results])
        metrics |= reward_metrics(by_reward, combined)
        metrics |= {
            "rollout_s": time.perf_counter() - started,
            "sampler_busy_s": sum(r.duration_s for r in receipts),
            "policy_version": update,
        }
        per_rank = len(batches) // self._ranks
        return UpdateWork(
            shares=[batches[r * per_rank : (r + 1) * per_rank] for r in range(self._ranks)], metrics=metrics
        )

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> WeightsNotice:
        """Put the weights once into the object store, and have every sampler acknowledge them."""
        notice = WeightsNotice(version=version, weights=[ray.put(weights)], checksum=checksum(weights))
        for ack in ray.get([sampler.load_weights.remote(notice) for sampler in self._samplers]):
            if ack != (notice.version, notice.checksum):
                raise UserError(f"align: a sampler acknowledged {ack}, not version {version} of the weights")
        return notice

    def _tasks(self, update: int) -> list[RolloutTask]:
        align = self._config.align
        plan = algorithm_of(align).plan_rollout(align, update, self._config.seed)
        chosen = prompts_of_update(self._prompt_ids, update, align.prompts_per_update, self._config.seed)
        groups = align.micro_batch_size // align.samples_per_prompt
        return [
            RolloutTask(
                prompt_ids=tuple(chosen[i : i + groups]),
                samples_per_prompt=align.samples_per_prompt,
                plan=plan,
                seed_key=(self._config.seed, "align", update),
            )
            for i in range(0, len(chosen), groups)
        ]

    def _scales(self, update: int, by_reward: Mapping[str, Scores]) -> dict[str, Scale]:
        """Of the rewards in `rewards:`; the reward folder alone is taken as it is."""
        entries, align = self._config.rewards, self._config.align
        if not entries:
            return {"model": Scale()}
        assert self._out is not None
        if update > 0:
            return load_scales(self._out)
        is_grouped = align.algorithm == "grpo"
        scales = measure_scales(entries, by_reward, align.samples_per_prompt, within_prompts=is_grouped)
        save_scales(scales, self._out)
        return scales

    def _weigh(self, scores: Scores, trajectories: list) -> tuple[list[BatchShare], dict[str, float]]:
        """Advantages over complete groups, trust weights over the whole update; 1 where no reward has a bound."""
        align = self._config.align
        reward = scores.reward.float()
        trust = torch.ones_like(reward)
        if align.trust and scores.trust_weight is not None:
            trust = scores.trust_weight.float()
        normalised = trust / trust.mean()
        grouped = reward.view(-1, align.samples_per_prompt)
        advantages = algorithm_of(align).compute_advantages(grouped, align).flatten()
        size = align.micro_batch_size
        batches = [
            BatchShare(trajectories=[ref], advantages=a, trust_weights=w)
            for ref, a, w in zip(trajectories, advantages.split(size), normalised.split(size), strict=True)
        ]
        return batches, {
            "reward": float(reward.mean()),
            "reward_std_in_group": float(grouped.std(dim=1).mean()),
            "trust_weight": float(trust.mean()),
            "trust_weight_std": float(normalised.std()),
            "effective_sample_share": float(normalised.sum() ** 2 / normalised.square().sum() / len(normalised)),
        }


def prompts_of_update(prompt_ids: list[str], update: int, count: int, seed: int) -> list[str]:
    """The prompts of an update: consecutive places in an endless series of seeded permutations."""
    chosen = []
    for place in range(update * count, (update + 1) * count):
        epoch, index = divmod(place, len(prompt_ids))
        chosen.append(prompt_ids[np.random.default_rng([seed, 19, epoch]).permutation(len(prompt_ids))[index]])
    return chosen


def check_receipts(receipts: list[RolloutReceipt], notice: WeightsNotice) -> None:
    """UserError where a rollout was not run with the published weights."""
    for receipt in receipts:
        if (receipt.version, receipt.checksum) != (notice.version, notice.checksum):
            raise UserError(
                f"align: prompts {', '.join(receipt.prompt_ids)} were sampled with version {receipt.version} "
                f"(checksum {receipt.checksum[:8]}), not {notice.version} ({notice.checksum[:8]}); update refused"
            )


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


def check_rewards(scores: Sequence[Mapping[str, Scores]], receipts: list[RolloutReceipt]) -> None:
    """UserError naming prompt and reward where a reward or its bound is not finite; it never counts as 0."""
    for verdicts, receipt in zip(scores, receipts, strict=True):
        for name, part in verdicts.items():
            columns = [c for c in (part.reward, part.uncertainty, part.trust_weight) if c is not None]
            is_finite = torch.isfinite(torch.stack(columns)).all(0)
            if not bool(is_finite.all()):
                first = int((~is_finite).nonzero()[0, 0])
                prompt_id = receipt.prompt_ids[first * len(receipt.prompt_ids) // len(part.reward)]
                value = float(part.reward[first])
                raise UserError(f"align: the reward of prompt {prompt_id} is {value} (reward {name}); update refused")
