"""One rank of the learner: DeepSpeed around the network, replay of trajectories, averaged weights, checkpoints."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.collectives import count_ranks, max_over_ranks, mean_over_ranks, own_rank, total_over_ranks
from rlhf.alignment.deepspeed_engine import make_universal, start_deepspeed, start_frozen
from rlhf.alignment.objective import PassLoss, TrainingBatch
from rlhf.alignment.split_network import shapes_without_memory
from rlhf.alignment.trained_tensors import SplitTensors, TrainedTensors, WholeTensors
from rlhf.alignment.training_checkpoint import (
    REMEDY,
    TAG,
    RankState,
    check_files,
    plain_types,
    read_split_states,
    record_files,
)
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.policy import Policy, add_adapters, make_trainable
from rlhf.diffusion.policy_weights import read_trainable_state
from rlhf.diffusion.precision import error_bound, hold_frozen, rounded_parameters
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.diffusion.trained_weights import load_trainable_state, without_adapters
from rlhf.errors import UserError
from rlhf.storage.tensor_files import tensors_only


class RatioError(UserError):
    """Samplers and learner disagree about the policy; the update is refused."""


class Learner:
    """Holds the trained network; every rank calls the same methods in the same order."""

    def __init__(
        self,
        policy: Policy,
        config: AlignConfig,
        *,
        micro_batches: int,
        seed: int,
        start: Path | None = None,
        base: torch.nn.Module | None = None,
        is_resized: bool = False,
    ) -> None:
        """Wrap the policy's network; `micro_batches` is this rank's forward passes per optimizer step, if all are full.

        Training starts from the weights in the policy folder `start`, if any; the KL stays relative to the base policy:
        the adapters switched off, or a copy of the network, or `base`, where a split network has no copy.
        `is_resized` announces a checkpoint of another number of ranks.
        """
        self.policy, self.config, self._objective = policy, config, algorithm_of(config).objective
        with shapes_without_memory(policy.network) as is_split:
            if is_split and config.trainable == "lora":
                add_adapters(policy, rank=config.lora_rank, targets=config.lora_targets, seed=seed)
        if not is_split or config.trainable == "full":
            make_trainable(policy, config.trainable, rank=config.lora_rank, targets=config.lora_targets, seed=seed)
        if config.gradient_checkpointing:
            policy.network.enable_gradient_checkpointing()
        self._base = self._freeze_base(base) if needs_base_copy(config) else None
        if start is not None:
            load_trainable_state(policy.network, read_trainable_state(start, policy.family, config.trainable))
        parameters = [p for p in policy.network.parameters() if p.requires_grad]
        self._is_resized, self._full_passes = is_resized, micro_batches
        self.engine = start_deepspeed(policy, parameters, config, micro_batches, is_resized=is_resized)
        self._tensors: TrainedTensors = (
            SplitTensors(self.engine) if config.zero_stage == 3 else WholeTensors(policy.network)
        )
        self.averaged = self._tensors.own() if config.average_decay else {}
        """EMA of what this rank holds of the trained tensors; empty if the last weights are saved instead."""
        self.updates = 0
        is_lagging = self._objective.old_policy_decay(config, 0) is not None
        self._old = self._tensors.own() if is_lagging else None

    def _freeze_base(self, base: torch.nn.Module | None) -> Any:
        if base is not None:
            return start_frozen(self.policy, base, self.config)
        copied = copy.deepcopy(self.policy.network).requires_grad_(False)
        hold_frozen(copied, self.policy.precision)
        return copied

    def weights(self) -> dict[str, torch.Tensor]:
        """The current trained tensors; under ZeRO-3 rank 0 alone gets them, and the others nothing."""
        return self._tensors.whole()

    def acting_weights(self, *, may_round: bool = False) -> dict[str, torch.Tensor]:
        """The weights for samplers: the trained ones, or those of the old policy, which follows them slowly.

        With `may_round`, a whole network in bf16 gives in bfloat16 the weights that autocast rounds anyway.
        """
        is_rounded = may_round and self.policy.precision == "bf16" and self.config.trainable == "full"
        names = {name for name, _ in rounded_parameters(self.policy.network)} if is_rounded else set()
        with self.acting():
            return self._tensors.whole(names)

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """The weights for users, averaged over the updates; as `weights`."""
        if not self.averaged:
            return self._tensors.whole()
        with self._tensors.holding(self.averaged):
            return self._tensors.whole()

    @contextmanager
    def acting(self) -> Iterator[Policy]:
        """Put `acting_weights` into the policy within the block."""
        with nullcontext() if self._old is None else self._tensors.holding(self._old):
            yield self.policy

    def train(self, batches: list[TrainingBatch], *, is_on_policy: bool = True) -> dict[str, float]:
        """Take `epochs_per_update` optimizer steps over this rank's share of a rollout; returns metrics of all ranks.

        Raises RatioError, before any weight has changed, if the rollout `is_on_policy` but another policy than the
        learner's sampled it. Raises UserError if the loss is not finite.
        """
        records: list[dict[str, float]] = []
        # The training passes see the trained policy, so an old policy that lags behind is checked by a pass of its own.
        lag = self._measure_lag(batches[0]) if is_on_policy and self._old is not None and self.updates else None
        for epoch in range(self.config.epochs_per_update):
            worst = 0.0
            passes = [(b, k) for b in batches for k in range(len(b.trajectories.latents))]
            for number, (batch, k) in enumerate(passes):
                is_last = number == len(passes) - 1
                with record_function("forward"):
                    part = self._pass(batch, k)
                # DeepSpeed divides by the number of passes that it was started with; sizes of prompts make it vary.
                loss = batch.weight * (self._full_passes / len(passes)) * part.loss
                self.engine.set_gradient_accumulation_boundary(is_last)
                with record_function("backward"):
                    self.engine.backward(loss)
                worst = max(worst, part.disagreement)
                records.append({"loss": float(part.loss.detach())} | part.figures)
                if is_last:
                    self._check(worst if lag is None else lag, loss, is_first=is_on_policy and epoch == 0)
                with record_function("optimizer"):
                    self.engine.step()
            if epoch == 0:
                initial_error = worst if lag is None else lag
        self._average()
        weights = [batch.weight for batch, _ in passes * self.config.epochs_per_update]
        means = mean_over_ranks([list(record.values()) for record in records], weights)
        figures = dict(zip(records[0], means, strict=True))
        if self._objective.disagreement is not None:
            figures[self._objective.disagreement] = initial_error
            if is_on_policy:
                figures["share_of_bound"] = initial_error / self._bound
        return figures | self._count(batches, is_lagging=lag is not None)

    def _pass(self, batch: TrainingBatch, k: int) -> PassLoss:
        """Pass a micro-batch through the engine and through the base policy."""
        schedule = self._schedule(batch)
        inputs = self._inputs(batch, k, schedule)
        base_output = self._base_output(inputs)
        output = self.policy.predict_with(self.engine, *inputs)
        return self._objective.compute_loss(output, base_output, batch, k, schedule, self.config)

    @torch.no_grad()
    def _measure_lag(self, batch: TrainingBatch) -> float:
        """Distance of the old policy from the one that sampled, on the first pass of a micro-batch."""
        schedule = self._schedule(batch)
        with self.acting():
            output = self.policy.predict(*self._inputs(batch, 0, schedule))
        return self._objective.compute_loss(output, None, batch, 0, schedule, self.config).disagreement

    def _inputs(self, batch: TrainingBatch, k: int, schedule: Schedule) -> tuple:
        t, device = batch.trajectories, self.policy.device
        timestep = schedule.timesteps[t.steps_at(k)].to(device)
        text = None if t.text is None else t.text.to(device)
        return t.latents[k].to(device), timestep, t.condition.to(device), text

    def _schedule(self, batch: TrainingBatch) -> Schedule:
        return self.policy.family.schedule(self.config.num_inference_steps, cells_of(batch.trajectories.latents))

    def _count(self, batches: list[TrainingBatch], *, is_lagging: bool) -> dict[str, float]:
        """Number of images through the network in one `train`, over all ranks."""
        own = sum(len(b.trajectories.latents) * len(b.advantages) for b in batches) * self.config.epochs_per_update
        images, lag = total_over_ranks([own, len(batches[0].advantages) if is_lagging else 0])
        return {
            "learner_forward_images": images + lag,
            "base_forward_images": images if reads_base(self.config) else 0,
            "backward_images": images,
        }

    @torch.no_grad()
    def _base_output(self, inputs: tuple) -> torch.Tensor | None:
        if not reads_base(self.config):
            return None
        if self._base is not None:
            return self.policy.predict_with(self._base, *inputs)
        with without_adapters(self.policy.network):
            return self.policy.predict(*inputs)

    def _check(self, worst: float, loss: torch.Tensor, *, is_first: bool) -> None:
        """Let all ranks go on, or all raise."""
        worst, not_finite = max_over_ranks([worst, 0.0 if torch.isfinite(loss) else 1.0])
        if not_finite:
            raise UserError("align: the loss is not finite; lower align.learning_rate or check the rewards")
        name = self._objective.disagreement
        if not is_first or name is None:
            return
        if worst > self._bound:
            raise RatioError(
                f"align: before the update the {name} is {worst:.2e} (more than "
                f"{self._bound:.0e}): a sampler's weights are not the learner's, or its precision or "
                "batch geometry differs; the update was refused"
            )

    @property
    def _bound(self) -> float:
        """Largest accepted disagreement with the samplers."""
        assert self._objective.disagreement is not None
        return error_bound(self.config, self.policy.precision, self._objective.disagreement)

    def _average(self) -> None:
        self.updates += 1
        decay = self._objective.old_policy_decay(self.config, self.updates)
        if not self.averaged and self._old is None:
            return
        for name, tensor in self._tensors.own().items():
            if self.averaged:
                self.averaged[name].lerp_(tensor, 1 - self.config.average_decay)
            if self._old is not None and decay is not None:
                self._old[name].lerp_(tensor, 1 - decay)

    def save(self, folder: Path, update: int) -> None:
        """Write this rank's part of a DeepSpeed checkpoint and the record of its files; all ranks call it."""
        state = RankState(update=update, averaged=self.averaged, old=self._old)
        self.engine.save_checkpoint(
            str(folder), tag=TAG, client_state=state, exclude_frozen_parameters=self.config.trainable == "lora"
        )
        record_files(folder, own_rank(), count_ranks())

    def load(self, folder: Path) -> int:
        """Load a checkpoint; returns the number of updates done. All ranks call it.

        Raises UserError, naming the file, if one is missing, changed, or holds more than tensors; nothing in it runs.
        """
        check_files(folder)
        with tempfile.TemporaryDirectory() as temporary, tensors_only(plain_types()):
            source, tag = folder, TAG
            if self._is_resized:
                source, tag = make_universal(folder, Path(temporary)), "universal"
            path, state = self.engine.load_checkpoint(str(source), tag=tag, load_module_strict=False)
        if path is None or not {"averaged", "update"} <= state.keys():
            raise UserError(f"{folder}: no checkpoint of this run; {REMEDY}")
        self.averaged, self._old, self.updates = state["averaged"], state.get("old"), int(state["update"])
        if self._is_resized and isinstance(self._tensors, SplitTensors):
            of_ranks = read_split_states(folder)
            if self.averaged:
                self.averaged = self._tensors.cut_again([state["averaged"] for state in of_ranks])
            if self._old is not None:
                self._old = self._tensors.cut_again([state["old"] or {} for state in of_ranks])
        return self.updates


def reads_base(config: AlignConfig) -> bool:
    """Whether the loss reads the base model's output: for the KL, or by itself."""
    return config.kl_weight > 0 or algorithm_of(config).objective.reads_base


def needs_base_copy(config: AlignConfig) -> bool:
    """Whether the base model's output needs a second network: adapters can be switched off, trained weights cannot."""
    return reads_base(config) and config.trainable == "full"
