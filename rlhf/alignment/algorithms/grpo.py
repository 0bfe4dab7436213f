"""Group-relative policy optimisation with a moving window of stochastic steps.

Advantages compare the samples of one prompt (GRPO, arXiv:2402.03300, eq. in 4.1.2); only the steps
inside the window are random and trained, all others are deterministic (MixGRPO, arXiv:2507.21802).
Deviations: the window's place is drawn anew for each update instead of sliding; samples of a prompt
share their initial noise.
"""

import numpy as np
import torch

from rlhf.alignment.objective import Algorithm
from rlhf.alignment.policy_gradient import POLICY_GRADIENT
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.trajectories import RolloutPlan


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """Randomise and train `window_size` neighbouring steps within the first `window_range`, drawn per update."""
    rng = np.random.default_rng([seed, 17, update])
    start = int(rng.integers(0, config.window_range - config.window_size + 1))
    window = tuple(range(start, start + config.window_size))
    return RolloutPlan(
        num_inference_steps=config.num_inference_steps,
        eta=config.eta,
        log_prob_over=config.log_prob_over,
        stochastic_steps=frozenset(window),
        trained_steps=window,
        shares_initial_noise=True,
    )


def compute_advantages(rewards: torch.Tensor, config: AlignConfig) -> torch.Tensor:
    """Standardise rewards [P, S] within each of P prompts, then clip; returns advantages [P, S]."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
    return advantages.clamp(-config.advantage_clip, config.advantage_clip)


def passes_per_batch(config: AlignConfig) -> int:
    """One pass per step of the window."""
    return config.window_size


ALGORITHM = Algorithm(
    plan_rollout=plan_rollout,
    compute_advantages=compute_advantages,
    compares_within_prompts=True,
    passes_per_batch=passes_per_batch,
    objective=POLICY_GRADIENT,
)
