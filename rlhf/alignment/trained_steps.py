"""Checks, before processes start, that the steps which a run will train have a log-prob."""

import torch

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import plan_steps
from rlhf.errors import UserError


def check_trained_steps(config: RunConfig) -> None:
    """Raises UserError if the model is not supported, or if an update trains a step that ends without noise."""
    align = config.align
    schedule = plan_steps(config.model, align.num_inference_steps)
    index = torch.arange(align.num_inference_steps)
    nothing = torch.zeros(len(index), 1, 1, 1)
    is_random = schedule.transition(nothing, nothing, index, align.eta).std_dev_t.flatten() > 0
    algorithm = algorithm_of(align)
    for update in range(align.updates):
        for step in algorithm.plan_rollout(align, update, config.seed).trained_steps:
            if not is_random[step]:
                raise UserError(
                    f"align: update {update + 1} trains step {step + 1} of {len(index)}, which ends without noise with "
                    f"the scheduler of {config.model.path} and so has no log-prob; lower align.window_range (grpo, "
                    "guard, mixgrpo), or set set_alpha_to_one to false in scheduler/scheduler_config.json"
                )
