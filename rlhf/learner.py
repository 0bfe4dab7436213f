"""One rank of the learner: DeepSpeed around the UNet, replay of trajectories, averaged weights, checkpoints."""

import copy
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from rlhf.config import AlignConfig
from rlhf.ddim import make_schedule
from rlhf.errors import UserError
from rlhf.policy import (
    Policy,
    base_policy,
    load_trainable_state,
    make_trainable,
    predict_with,
    read_trainable_state,
    trainable_state,
)
from rlhf.policy_gradient import clipped_objective, replay_transition
from rlhf.trajectories import Trajectories


class RatioError(UserError):
    """Samplers and learner disagree about the policy: the update is refused."""


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """A micro-batch of finished, scored trajectories."""

    trajectories: Trajectories
    advantages: torch.Tensor
    """float32 [B]."""
    trust_weights: torch.Tensor
    """float32 [B], divided by the mean over the whole update."""
    weight: float = 1.0
    """Of this micro-batch in the mean over all; 0 where it only fills up a rank."""


class Learner:
    """Holds the trained UNet; every rank calls the same methods in the same order."""

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
        """Wrap the policy's UNet; `micro_batches` is this rank's forward passes per optimizer step.

        Training starts from the weights in the policy folder `start`, if any; the KL is to the base policy
        still. `is_resized` says that a checkpoint of another number of ranks will be loaded.
        """
        self.policy, self.config = policy, config
        make_trainable(policy, config.trainable, rank=config.lora_rank, targets=config.lora_targets, seed=seed)
        if config.gradient_checkpointing:
            policy.unet.enable_gradient_checkpointing()
        self._base = copy.deepcopy(policy.unet).requires_grad_(False) if self._needs_base_copy else None
        if start is not None:
            load_trainable_state(policy.unet, read_trainable_state(start, policy.unet, config.trainable))
        parameters = [p for p in policy.unet.parameters() if p.requires_grad]
        self._is_resized = is_resized
        self.engine = start_deepspeed(policy, parameters, config, micro_batches, is_resized=is_resized)
        self.averaged = self.weights()
        self._schedule = make_schedule(policy.scheduler, config.num_inference_steps)

    @property
    def _needs_base_copy(self) -> bool:
        return self.config.kl_weight > 0 and self.config.trainable == "full"

    def weights(self) -> dict[str, torch.Tensor]:
        """The current trained tensors, gathered where ZeRO-3 has split them."""
        if self.config.zero_stage < 3:
            return trainable_state(self.policy.unet)
        import deepspeed

        with deepspeed.zero.GatheredParameters([p for p in self.policy.unet.parameters() if p.requires_grad]):
            return trainable_state(self.policy.unet)

    def train(self, batches: list[TrainingBatch], *, is_on_policy: bool = True) -> dict[str, float]:
        """`epochs_per_update` optimizer steps over this rank's share of a rollout; returns metrics.

        Raises RatioError, before any weight has changed, where a ratio is not 1 in the first epoch
        although the rollout `is_on_policy`, and UserError where the loss is not finite.
        """
        records: list[torch.Tensor] = []
        for epoch in range(self.config.epochs_per_update):
            worst = 0.0
            passes = [(b, k) for b in batches for k in range(len(b.trajectories.step_indices))]
            for number, (batch, k) in enumerate(passes):
                loss, record = self._loss(batch, k)
                self.engine.backward(loss)
                worst = max(worst, float((record[1] - 1).abs().max()))
                records.append(torch.cat([loss.detach().reshape(1).cpu(), self._summary(record)]))
                if number == len(passes) - 1:
                    self._check(worst, loss, is_first=is_on_policy and epoch == 0)
                self.engine.step()
            if epoch == 0:
                initial_error = worst
        self._average()
        loss, approx_kl, clipfrac, kl = torch.stack(records).mean(0).tolist()
        return {
            "loss": loss,
            "approx_kl": approx_kl,
            "clipfrac": clipfrac,
            "kl_to_base": kl,
            "ratio_error": initial_error,
        }

    def _loss(self, batch: TrainingBatch, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of one transition of a micro-batch, and [3, B]: log-ratio, ratio, KL to base."""
        device, t = self.policy.device, batch.trajectories
        latents, next_latents = t.latents[k].to(device), t.next_latents[k].to(device)
        condition, step = t.condition.to(device), t.step_indices[k]
        timestep = self._schedule.timesteps[torch.full((len(latents),), step)].to(device)
        inputs = (latents, timestep, condition, self.policy.text, self.policy.precision)
        base_output = self._base_output(inputs)
        output = predict_with(self.engine, *inputs)
        log_prob, kl = replay_transition(
            output, base_output, latents, next_latents, step, self._schedule, self.config.eta, t.latent_mask.to(device)
        )
        old_log_prob = t.old_log_prob[k].to(device)
        objective, ratio = clipped_objective(
            log_prob, old_log_prob, batch.advantages.to(device), batch.trust_weights.to(device), self.config.clip_range
        )
        record = torch.stack([log_prob.detach() - old_log_prob, ratio.detach(), kl.detach()])
        return batch.weight * (objective + self.config.kl_weight * kl.mean()), record

    @torch.no_grad()
    def _base_output(self, inputs: tuple) -> torch.Tensor | None:
        if self.config.kl_weight == 0:
            return None
        if self._base is not None:
            return predict_with(self._base, *inputs)
        with base_policy(self.policy.unet):
            return predict_with(self.policy.unet, *inputs)

    def _summary(self, record: torch.Tensor) -> torch.Tensor:
        """approx_kl, clipfrac and KL to base of a micro-batch."""
        log_ratio, ratio, kl = record.cpu()
        clipped = ((ratio - 1).abs() > self.config.clip_range).float()
        return torch.stack([0.5 * log_ratio.square().mean(), clipped.mean(), kl.mean()])

    def _check(self, worst: float, loss: torch.Tensor, *, is_first: bool) -> None:
        """All ranks agree to go on, or all raise."""
        values = torch.tensor([worst, 0.0 if torch.isfinite(loss) else 1.0])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        if values[1] > 0:
            raise UserError("align: the loss is not finite; lower align.learning_rate or check the rewards")
        if is_first and float(values[0]) > self.config.max_ratio_error:
            raise RatioError(
                f"align: before the update a ratio differs from 1 by {float(values[0]):.2e} (more than "
                f"{self.config.max_ratio_error:.0e}): a sampler's weights are not the learner's, or its precision or "
                "batch geometry differs; the update was refused"
            )

    def _average(self) -> None:
        for name, tensor in self.weights().items():
            self.averaged[name].lerp_(tensor, 1 - self.config.average_decay)

    def save(self, folder: Path, update: int) -> None:
        """Write a DeepSpeed checkpoint of tag `latest-update`; all ranks call it."""
        state = {"update": update, "averaged": self.averaged}
        self.engine.save_checkpoint(
            str(folder), tag="learner", client_state=state, exclude_frozen_parameters=self.config.trainable == "lora"
        )

    def load(self, folder: Path) -> int:
        """Go on from a checkpoint; returns the number of updates done. All ranks call it."""
        with tempfile.TemporaryDirectory() as temporary:
            source, tag = (
                (_make_universal(folder, Path(temporary)), "universal") if self._is_resized else (folder, "learner")
            )
            path, state = self.engine.load_checkpoint(str(source), tag=tag, load_module_strict=False)
        if path is None:
            raise UserError(f"{folder}: no learner checkpoint there")
        self.averaged = state["averaged"]
        return int(state["update"])


def _make_universal(checkpoint: Path, out: Path) -> Path:
    """A copy of a ZeRO checkpoint that any number of ranks can load, in `out`; each rank makes its own."""
    source, target = checkpoint / "learner", out / "universal"
    words = ["--input_folder", str(source), "--output_folder", str(target), "--inject_missing_state"]
    words += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{checkpoint}: cannot be turned for another number of learners ({done.stderr[-300:]})")
    (out / "latest_universal").write_text("universal")
    return out


def start_deepspeed(  # noqa: ANN201
    policy: Policy, parameters: list, config: AlignConfig, micro_batches: int, *, is_resized: bool = False
):
    """A DeepSpeed engine around the UNet, on GPU or CPU.

    The optimizer is PyTorch's own AdamW, since DeepSpeed would compile its own (a minute or two).
    """
    import deepspeed

    if policy.device.type == "cpu":
        import deepspeed.ops

        # Otherwise deepspeed compiles a shared-memory collective at start (50 s, needs a compiler).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=policy.unet,
        model_parameters=parameters,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": config.max_grad_norm,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
            "checkpoint": {"load_universal": is_resized},
        },
    )
    return engine
