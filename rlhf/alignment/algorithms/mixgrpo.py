"""GRPO whose steps after the window are fewer and of second order (MixGRPO-Flash, arXiv:2507.21802).

All as in `grpo`, but once the last random step is done, DPM-Solver++(2M) ends the sample on a compressed grid: a subset
of the schedule's noise levels. The window, and so every trained transition, is that of the fine grid.
Deviations: those of `grpo`; predictions from before the window's noise are not extrapolated from, so the first step
after it is of first order (else samples were 1.3 to 1.7 times as far from the fine grid's); so is the last (it may end
without noise, where log-SNR is infinite). Before the window nothing is saved: a group shares those steps, for the
passes of one sample.
"""

from dataclasses import replace

from rlhf.alignment.algorithms import grpo
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.trajectories import RolloutPlan


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """The plan of `grpo`; of the steps after its window `steps_share` remain, rounded down, but one at the least."""
    plan = grpo.plan_rollout(config, update, seed)
    begin = plan.trained_steps[-1] + 1
    after = config.num_inference_steps - begin
    # Halves of a rounding error must not cost a step: 0.4 x 5 is 2.
    count = min(after, max(1, int(after * config.steps_share + 1e-9)))
    rest = tuple(begin + i * after // count for i in range(count))
    return replace(plan, visited_steps=(*range(begin), *rest), second_order_steps=frozenset(rest[1:-1]))


ALGORITHM = replace(grpo.ALGORITHM, plan_rollout=plan_rollout)
