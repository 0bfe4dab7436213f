"""GRPO whose steps after the window are fewer and of second order (MixGRPO-Flash, arXiv:2507.21802).

The sample runs as in `grpo` to its last random step. Then second-order steps (DPM-Solver++(2M); for flow matching a
linear multistep method) finish it on a compressed grid: a subset of the schedule's noise levels. The window, and so
every trained transition, lies on the fine grid. Deviations: those of `grpo`. The first step after the window is of
first order, since extrapolating from predictions before the window's noise left samples 1.3 to 1.7 times as far from
the fine grid's; the last step is of first order too, since it may end at noise level 0, whose log-SNR is infinite.
Steps before the window are not reduced: a group shares them, so they cost the passes of one sample.
"""

from dataclasses import replace

from rlhf.alignment.algorithms import grpo
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.trajectories import RolloutPlan


def plan_rollout(config: AlignConfig, update: int, seed: int) -> RolloutPlan:
    """The plan of `grpo` with the share `steps_share` of the steps after its window, rounded down, at least one."""
    plan = grpo.plan_rollout(config, update, seed)
    begin = plan.trained_steps[-1] + 1
    after = config.num_inference_steps - begin
    # A rounding error must not cost a step: 0.4 x 5 is 2.
    count = min(after, max(1, int(after * config.steps_share + 1e-9)))
    rest = tuple(begin + i * after // count for i in range(count))
    return replace(plan, visited_steps=(*range(begin), *rest), second_order_steps=frozenset(rest[1:-1]))


ALGORITHM = replace(grpo.ALGORITHM, plan_rollout=plan_rollout)
