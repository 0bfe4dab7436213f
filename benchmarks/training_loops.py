"""Training in one process: the process group that DeepSpeed needs, and an update in plain PyTorch for comparison."""

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist

from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.policy_gradient import compute_loss
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.policy import Policy, make_trainable
from rlhf.diffusion.trained_weights import without_adapters


class process_group:  # noqa: N801 - a context, read as one
    """Process group of one rank, which DeepSpeed needs: NCCL on a GPU, as in `rlhf align`, otherwise gloo."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._backend = "nccl" if device is not None and device.type == "cuda" else "gloo"

    def __enter__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ[name] = value
        dist.init_process_group(self._backend, init_method=f"file://{self._folder.name}/store", rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        dist.destroy_process_group()
        self._folder.cleanup()


def plain_update(
    policy: Policy,
    batches: Sequence[TrainingBatch],
    config: AlignConfig,
    backward: Callable[[torch.Tensor], object] = torch.Tensor.backward,
) -> Callable[[], object]:
    """Returns an update with the loss, clipping and optimizer of our learner, in plain PyTorch."""
    make_trainable(policy, config.trainable, rank=config.lora_rank, targets=config.lora_targets, seed=0)
    is_lora = config.trainable == "lora"
    if config.gradient_checkpointing:
        policy.network.enable_gradient_checkpointing()
    base = policy.network if is_lora or not config.kl_weight else copy.deepcopy(policy.network).requires_grad_(False)
    trained = [p for p in policy.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = policy.family.schedule(config.num_inference_steps, cells_of(batches[0].trajectories.latents))
    passes = [(batch, k) for batch in batches for k in range(len(batch.trajectories.latents))]

    def update() -> None:
        for batch, k in passes:
            t, device = batch.trajectories, policy.device
            timestep = schedule.timesteps[t.steps_at(k)].to(device)
            inputs = (t.latents[k].to(device), timestep, t.condition.to(device))
            base_output = None
            if config.kl_weight:
                with torch.no_grad(), without_adapters(base) if is_lora else nullcontext():
                    base_output = policy.predict_with(base, *inputs)
            output = policy.predict(*inputs)
            backward(compute_loss(output, base_output, batch, k, schedule, config).loss / len(passes))
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return update
