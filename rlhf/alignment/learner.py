"""One rank of the learner: DeepSpeed around the network, replay of trajectories, averaged weights, checkpoints."""

import copy
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.alignment.checkpoint_files import REMEDY, check_files, plain_types, record_files
from rlhf.alignment.collectives import count_ranks, max_over_ranks, own_rank
from rlhf.alignment.objective import PassLoss, TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.policy import Policy, make_trainable
from rlhf.diffusion.policy_weights import read_trainable_state
from rlhf.diffusion.precision import error_bound, hold_frozen
from rlhf.diffusion.steps.step_rule import Schedule
from rlhf.diffusion.trained_weights import load_trainable_state, trainable_state, without_adapters
from rlhf.errors import UserError
from rlhf.storage.tensor_files import tensors_only

TAG = "learner"
"""DeepSpeed's name of the checkpoint inside a checkpoint folder."""


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
        is_resized: bool = False,
    ) -> None:
        """Wrap the policy's network; `micro_batches` is this rank's forward passes per optimizer step.

        Training starts from the weights in the policy folder `start`, if any; the KL stays relative to the base policy.
        `is_resized` announces a checkpoint of another number of ranks.
        """
        self.policy, self.config, self._objective = policy, config, algorithm_of(config).objective
        make_trainable(policy, config.trainable, rank=config.lora_rank, targets=config.lora_targets, seed=seed)
        if config.gradient_checkpointing:
            policy.network.enable_gradient_checkpointing()
        self._base = copy.deepcopy(policy.network).requires_grad_(False) if self._needs_base_copy else None
        if self._base is not None:
            hold_frozen(self._base, policy.precision)
        if start is not None:
            load_trainable_state(policy.network, read_trainable_state(start, policy.family, config.trainable))
        parameters = [p for p in policy.network.parameters() if p.requires_grad]
        self._is_resized = is_resized
        self.engine = start_deepspeed(policy, parameters, config, micro_batches, is_resized=is_resized)
        self.averaged = self.weights()
        self.updates = 0
        is_lagging = self._objective.old_policy_decay(config, 0) is not None
        self._old = self.weights() if is_lagging else None

    @property
    def _needs_base_copy(self) -> bool:
        return self._reads_base and self.config.trainable == "full"

    @property
    def _reads_base(self) -> bool:
        return self.config.kl_weight > 0 or self._objective.reads_base

    def weights(self) -> dict[str, torch.Tensor]:
        """The current trained tensors, gathered if ZeRO-3 has split them."""
        if self.config.zero_stage < 3:
            return trainable_state(self.policy.network)
        import deepspeed

        with deepspeed.zero.GatheredParameters([p for p in self.policy.network.parameters() if p.requires_grad]):
            return trainable_state(self.policy.network)

    def acting_weights(self) -> dict[str, torch.Tensor]:
        """The weights for samplers: the trained ones, or those of the old policy, which follows them slowly."""
        return self.weights() if self._old is None else {name: t.clone() for name, t in self._old.items()}

    @contextmanager
    def acting(self) -> Iterator[Policy]:
        """Put `acting_weights` into the policy within the block."""
        trained = None if self._old is None else trainable_state(self.policy.network)
        if self._old is not None:
            load_trainable_state(self.policy.network, self._old)
        try:
            yield self.policy
        finally:
            if trained is not None:
                load_trainable_state(self.policy.network, trained)

    def train(self, batches: list[TrainingBatch], *, is_on_policy: bool = True) -> dict[str, float]:
        """Take `epochs_per_update` optimizer steps over this rank's share of a rollout; returns metrics.

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
                part = self._pass(batch, k)
                loss = batch.weight * part.loss
                self.engine.backward(loss)
                worst = max(worst, part.disagreement)
                records.append({"loss": float(loss.detach())} | part.figures)
                if number == len(passes) - 1:
                    self._check(worst if lag is None else lag, loss, is_first=is_on_policy and epoch == 0)
                self.engine.step()
            if epoch == 0:
                initial_error = worst if lag is None else lag
        self._average()
        means = torch.tensor([list(record.values()) for record in records]).mean(0).tolist()
        figures = dict(zip(records[0], means, strict=True))
        if self._objective.disagreement is not None:
            figures[self._objective.disagreement] = initial_error
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
        """Number of images through the network in one `train`, over all ranks, which hold equal numbers of batches."""
        ranks = count_ranks()
        images = sum(len(b.trajectories.latents) * len(b.advantages) for b in batches) * self.config.epochs_per_update
        lag = len(batches[0].advantages) if is_lagging else 0
        return {
            "learner_forward_images": ranks * (images + lag),
            "base_forward_images": ranks * images if self._reads_base else 0,
            "backward_images": ranks * images,
        }

    @torch.no_grad()
    def _base_output(self, inputs: tuple) -> torch.Tensor | None:
        if not self._reads_base:
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
        bound = error_bound(self.config, self.policy.precision, name)
        if worst > bound:
            raise RatioError(
                f"align: before the update the {name} is {worst:.2e} (more than "
                f"{bound:.0e}): a sampler's weights are not the learner's, or its precision or "
                "batch geometry differs; the update was refused"
            )

    def _average(self) -> None:
        self.updates += 1
        decay = self._objective.old_policy_decay(self.config, self.updates)
        for name, tensor in self.weights().items():
            self.averaged[name].lerp_(tensor, 1 - self.config.average_decay)
            if self._old is not None and decay is not None:
                self._old[name].lerp_(tensor, 1 - decay)

    def save(self, folder: Path, update: int) -> None:
        """Write this rank's part of a DeepSpeed checkpoint and the record of its files; all ranks call it."""
        state = {"update": update, "averaged": self.averaged, "old": self._old}
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
                source, tag = _make_universal(folder, Path(temporary)), "universal"
            path, state = self.engine.load_checkpoint(str(source), tag=tag, load_module_strict=False)
        if path is None or not {"averaged", "update"} <= state.keys():
            raise UserError(f"{folder}: no checkpoint of this run; {REMEDY}")
        self.averaged, self._old, self.updates = state["averaged"], state.get("old"), int(state["update"])
        return self.updates


def _make_universal(checkpoint: Path, out: Path) -> Path:
    """Convert a ZeRO checkpoint, in `out`, for any number of ranks; each rank makes its own copy."""
    from deepspeed.checkpoint.ds_to_universal import main

    arguments = Namespace(
        input_folder=str(checkpoint / TAG),
        output_folder=str(out / "universal"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with Path(os.devnull).open("w") as silence, redirect_stdout(silence):
        main(arguments)
    return out


def start_deepspeed(  # noqa: ANN201
    policy: Policy, parameters: list, config: AlignConfig, micro_batches: int, *, is_resized: bool = False
):
    """Wrap the network in a DeepSpeed engine, on GPU or CPU.

    The optimizer is PyTorch's AdamW, since DeepSpeed would compile its own (a minute or two).
    """
    import deepspeed

    if policy.device.type == "cpu":
        import deepspeed.ops

        # Otherwise deepspeed compiles a shared-memory collective at start (50 s, needs a compiler).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=policy.network,
        model_parameters=parameters,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": config.max_grad_norm,
            "zero_optimization": {"stage": config.zero_stage},
            # On a GPU the engine's autocast replaces the family's. No modules are named, since gradients of named
            # modules would be averaged in bfloat16.
            "torch_autocast": {
                "enabled": policy.precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "checkpoint": {"load_universal": is_resized},
        },
    )
    return engine
