"""Samples images of policies on Ray, for the stages beside `rlhf align`: candidates and evaluation."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
import ray.exceptions
import torch

from actors.messages import RolloutTask
from actors.placement import cpus_of, reserve, start_samplers
from actors.pool.dispatch import Dispatcher
from actors.pool.quarantine import Quarantine
from actors.pool.task_records import PoisonPrompt
from actors.resources import resources_of
from actors.session.ray_session import ray_session
from actors.telemetry.incidents import Incidents
from actors.text_preparation import prepare_texts
from actors.weight_sync import WeightsNotice
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.pipeline_folder import Part
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.policy import load_policy, make_trainable, plan_steps
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.diffusion.policy_weights import adapter_settings, read_trainable_state
from rlhf.diffusion.sampler import SampledTask, SamplingTask, TakePrompts
from rlhf.diffusion.trained_weights import trainable_state


@contextmanager
def remote_samplers(
    config: RunConfig,
    table: PromptTable,
    policies: Sequence[Path | None],
    out: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    wait: bool = False,
) -> Iterator[Callable[[Path | None], "RemoteSampler"]]:
    """Starts samplers; yields the function that opens one of `policies`, or the base model (None).

    `workers` replaces `cluster.samplers`; `address` is the cluster to join, this machine alone by default.
    Only the policy that was opened last can be sampled. Lost samplers are noted in `out/incidents.jsonl`, prompts
    that kill them in `out/quarantine.json`.
    """
    plan_steps(config.model, config.evaluate.num_inference_steps)
    adapters = [adapter_settings(policy) for policy in policies if policy is not None]
    align = config.align.model_copy(update=adapters[-1] if adapters else {})
    cluster = config.cluster if workers is None else config.cluster.model_copy(update={"samplers": workers})
    config = config.model_copy(update={"align": align, "cluster": cluster})
    with ray_session(address, num_cpus=cpus_of(cluster)):
        group = reserve(cluster, ("sampler",), wait=wait)
        texts = prepare_texts(config, table, out, group)
        dispatcher = start_samplers(config, group, Incidents(out), texts)
        opened = itertools.count()

        def open_policy(policy: Path | None) -> RemoteSampler:
            version = 0 if policy is None else int(read_manifest(policy)["policy_version"])
            # Numbered as they are opened: folders of two runs may have one version.
            notice = WeightsNotice.publish(read_weights(config, policy, texts), next(opened))
            return RemoteSampler(dispatcher, notice, version, table.rows, Quarantine(out))

        yield open_policy


def read_weights(config: RunConfig, policy: Path | None, texts: TextCache | None) -> dict[str, torch.Tensor]:
    """Returns the trained tensors of a policy folder, or of the base model, whose fresh adapters add nothing."""
    align, model = config.align, config.model
    # Samplers have the GPUs; this process may have none.
    if model.precision == "auto" and model.device != "cpu" and "GPU" in resources_of(config.cluster, "sampler"):
        model = model.model_copy(update={"precision": "bf16"})
    holds_float = config.cluster.weights_in == "fp32"
    model = model.model_copy(update={"device": "cpu"})
    base = load_policy(model, parts={Part.NETWORK}, is_trained_whole=holds_float, texts=texts)
    make_trainable(base, align.trainable, rank=align.lora_rank, targets=align.lora_targets, seed=config.seed)
    if policy is None:
        return trainable_state(base.network)
    return read_trainable_state(policy, base.family, align.trainable)


class RemoteSampler:
    """Samples a policy on many actors; see `rlhf.diffusion.sampler.Sampler`."""

    def __init__(
        self, dispatcher: Dispatcher, notice: WeightsNotice, version: int, take: TakePrompts, quarantine: Quarantine
    ) -> None:
        self.version = version
        self._dispatcher, self._notice, self._take, self._quarantine = dispatcher, notice, take, quarantine

    def sample(self, tasks: Iterable[SamplingTask]) -> Iterator[SampledTask]:
        """Yields all tasks as they are finished, without the prompts that kill samplers; these are reported."""
        left = {task.number: task for task in tasks}
        while left:
            begun = self._without_quarantined(left.values())
            left = {task.number: task for task in begun}
            try:
                for finished in self._dispatcher.stream(self._notice, map(self._publish, begun)):
                    task = begun[finished.number]
                    try:
                        images = ray.get(finished.images)
                    except ray.exceptions.ObjectLostError:
                        continue  # Lost with its node, so still left.
                    del left[task.number]
                    yield SampledTask(task=task, images=images)
            except PoisonPrompt as poison:
                self._quarantine.add(poison.prompt_id, "samplers died repeatedly, also when it was alone")
                print(f"prompt {poison.prompt_id} kills samplers; quarantined (quarantine.json)", file=sys.stderr)

    def _without_quarantined(self, tasks: Iterable[SamplingTask]) -> list[SamplingTask]:
        gone = self._quarantine.reasons
        kept = [replace(t, prompt_ids=tuple(name for name in t.prompt_ids if name not in gone)) for t in tasks]
        return [task for task in kept if task.prompt_ids]

    def _publish(self, task: SamplingTask) -> RolloutTask:
        rows = dict(zip(task.prompt_ids, self._take(task.prompt_ids), strict=True))
        return RolloutTask(
            prompt_ids=task.prompt_ids,
            prompts=[ray.put(rows)],
            samples_per_prompt=len(task.sample_indices),
            plan=task.plan,
            seed_key=task.seed_key,
            first_sample=task.sample_indices.start,
        )
