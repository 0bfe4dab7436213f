"""PrefPaint's own algorithm (arXiv:2410.21966, section 3): DDPO on all steps, trust-weighted.

All steps are stochastic, a random subset is trained, advantages compare the whole batch. Without
trust weights this is DDPO (arXiv:2305.13301). Deviations: the last step is not trained;
`advantage_clip` is configurable (the release uses 10).
"""

import numpy as np
import torch

from rlhf.alignment.objective import Algorithm
from rlhf.alignment.policy_gradient import POLICY_GRADIENT
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.trajectories import RolloutPlan


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """Randomise all steps; train `trained_steps` of all but the last, whose noise is almost 0, or is 0.

    They are drawn before the rollout so that only those are stored.
    """
    rng = np.random.default_rng([seed, 17, update])
    trained = rng.choice(config.num_inference_steps - 1, size=config.trained_steps, replace=False)
    return RolloutPlan(
        num_inference_steps=config.num_inference_steps,
        eta=config.eta,
        log_prob_over=config.log_prob_over,
        stochastic_steps=frozenset(range(config.num_inference_steps)),
        trained_steps=tuple(sorted(trained.tolist())),
    )


def compute_advantages(rewards: torch.Tensor, config: AlignConfig) -> torch.Tensor:
    """Standardise rewards [P, S] over the whole batch, then clip; returns advantages [P, S]."""
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-7)
    return advantages.clamp(-config.advantage_clip, config.advantage_clip)


def passes_per_batch(config: AlignConfig) -> int:
    """One pass per trained step."""
    return config.trained_steps


ALGORITHM = Algorithm(
    plan_rollout=plan_rollout,
    compute_advantages=compute_advantages,
    compares_within_prompts=False,
    passes_per_batch=passes_per_batch,
    objective=POLICY_GRADIENT,
)
