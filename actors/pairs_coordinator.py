"""A coordinator of pairs that people judged, for `dpo`: no samplers and no scorers."""

import time
from collections.abc import Sequence

import ray
import torch

from actors.coordinator import share_out
from actors.messages import BatchShare, UpdateWork
from actors.telemetry.incidents import Incidents
from rlhf.alignment.algorithms.dpo import noise_pairs
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.prompt_order import prompts_of_update
from rlhf.config.run_config import RunConfig
from rlhf.data.buckets import batches_of_one_size
from rlhf.data.preferred_pairs import PairTable
from rlhf.diffusion.policy import Policy
from rlhf.storage.images import to_8bit


class PairsCoordinator:
    """Reads, encodes and noises the pairs of each update. They depend on (pairs, seed, update), so no state is lost."""

    def __init__(
        self, config: RunConfig, pairs: PairTable, policy: Policy, incidents: Incidents, *, ranks: int
    ) -> None:
        self._config, self._pairs, self._policy = config, pairs, policy
        self._incidents, self._ranks = incidents, ranks

    def collect(self, update: int, weights: dict[str, torch.Tensor], probe: float | None = None) -> UpdateWork:
        """Returns the pairs of an update; the weights are not used."""
        started = time.perf_counter()
        align, seed = self._config.align, self._config.seed
        chosen = prompts_of_update(self._pairs.names, update, align.prompts_per_update, seed)
        together = batches_of_one_size(chosen, self._pairs.sizes(chosen), align.micro_batch_size // 2)
        batches = [self._batch(names, update, is_first=number == 0) for number, names in enumerate(together)]
        metrics = {"rollout_s": time.perf_counter() - started, "policy_version": update, "staleness": 0}
        metrics |= self._incidents.metrics()
        return UpdateWork(shares=share_out(batches, self._ranks), metrics=metrics, checksum="")

    def _batch(self, names: Sequence[str], update: int, *, is_first: bool) -> BatchShare:
        plan = algorithm_of(self._config.align).plan_rollout(self._config.align, update, self._config.seed)
        prompts, images = self._pairs.read(names)
        keys = [(self._config.seed, "align", update, name) for name in names]
        noised = noise_pairs(self._policy, prompts, images, plan, keys)
        ones = torch.ones(len(images))
        return BatchShare(
            trajectories=[ray.put(noised)],
            # The grid of a checkpoint shows the first micro-batch.
            images=[ray.put(to_8bit(images))] if is_first else [],
            advantages=ones,
            trust_weights=ones,
            prompt_ids=tuple(prompt.prompt_id for prompt in prompts),
            scores={},
        )
