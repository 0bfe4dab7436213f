"""Flow matching (arXiv:2210.02747) as a stochastic step rule, with DPM-Solver++(2M) for deterministic steps.

Latents at noise level s are x = (1 - s) x0 + s e; the network predicts the velocity v = e - x0. Hence x0 = x - s v and
e = x + (1 - s) v.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from rlhf.diffusion.steps.step_rule import Transition, per_image, skip_levels
from rlhf.errors import UserError

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

FlowRule = Literal["ddim", "flow_sde", "dance"]


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """A `Schedule` of noise levels between clean latents (0) and noise (1)."""

    timesteps: torch.Tensor
    """float32 [T], descending: 1,000 times the noise level."""
    sigmas: torch.Tensor
    """float32 [T], the noise level at each position."""
    next_sigmas: torch.Tensor
    """float32 [T], the noise level after each step."""
    rule: FlowRule = "ddim"
    """Rule of the stochastic steps."""
    solver_order: int = 1
    """Of deterministic steps; 1: Euler's, 2: DPM-Solver++(2M)'s, which uses the prediction of the step before."""

    def transition(
        self, model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor, eta: float
    ) -> Transition:
        """Mean and deviation of the next latents; with `eta` 0 the deterministic Euler step.

        `ddim` is DDIM (arXiv:2010.02502, eq. 12 and 16) in these coordinates: the latents never hold more noise than
        the next level has. For comparison with peers: `flow_sde` is the rule of Flow-GRPO (arXiv:2505.05470), `dance`
        of DanceGRPO (arXiv:2505.07818).
        """
        sigma = per_image(self.sigmas, step_index, latents)
        sigma_next = per_image(self.next_sigmas, step_index, latents)
        clean, noise = latents - sigma * model_output, latents + (1 - sigma) * model_output
        if self.rule == "ddim":
            shrinkage = (1 - sigma) * sigma_next / ((1 - sigma_next) * sigma)
            std_dev_t = eta * sigma_next * (1 - shrinkage**2).clamp(min=0).sqrt()
            mean = (1 - sigma_next) * clean + (sigma_next**2 - std_dev_t**2).clamp(min=0).sqrt() * noise
            return Transition(mean=mean, std_dev_t=std_dev_t, clean=clean)
        step = sigma_next - sigma
        if self.rule == "flow_sde":
            # At level 1 the coefficient is infinite; peers take the next level's.
            diffusion = eta * (sigma / (1 - torch.where(sigma == 1, sigma_next, sigma))).sqrt()
        else:
            diffusion = torch.full_like(sigma, eta)
        mean = latents + (model_output + diffusion**2 / (2 * sigma) * noise) * step
        return Transition(mean=mean, std_dev_t=diffusion * (-step).sqrt(), clean=clean)

    def predicted_clean(
        self, model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor
    ) -> torch.Tensor:
        """The finished latents [B, C, h, w] that a prediction for `latents` implies."""
        return latents - per_image(self.sigmas, step_index, latents) * model_output

    def target_output(self, clean: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """The network's output for `latents` that implies the finished latents `clean` [B, C, h, w]."""
        return (latents - clean) / per_image(self.sigmas, step_index, latents)

    def second_order(
        self, clean: torch.Tensor, previous_clean: torch.Tensor, latents: torch.Tensor, step: int, previous: int
    ) -> torch.Tensor:
        """The next latents by DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2).

        The formula is Euler's step from clean latents that are extrapolated in log-SNR from the predictions at `step`
        and at `previous`, the position before it. The step must not end at noise level 0, whose log-SNR is infinite; so
        is that of level 1, which leaves the prediction there without weight.
        """
        levels = torch.stack([*self.sigmas[[previous, step]], self.next_sigmas[step]]).double()
        before, here, after = (torch.log1p(-levels) - levels.log()).tolist()
        extrapolated = clean + (after - here) / (2 * (here - before)) * (clean - previous_clean)
        sigma, sigma_next = self.sigmas[step].to(latents), self.next_sigmas[step].to(latents)
        noise = (latents - (1 - sigma) * extrapolated) / sigma
        return (1 - sigma_next) * extrapolated + sigma_next * noise

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] mixed with noise at the levels of positions `step_index` (int64 [B])."""
        sigma = per_image(self.sigmas, step_index, clean)
        return (1 - sigma) * clean + sigma * noise

    def add_noise_after(self, clean: torch.Tensor, noise: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] mixed with noise at the levels that the steps at `step_index` end at."""
        return replace(self, sigmas=self.next_sigmas).add_noise(clean, noise, step_index)

    def skip_to(self, visited: Sequence[int]) -> "FlowSchedule":
        """The schedule that runs only the positions `visited` [ascending]; each leads to the next one's noise level."""
        return replace(self, next_sigmas=skip_levels(self.next_sigmas, visited))

    def at_rows(self, rows: "Sequence[tuple[FlowSchedule, int]]") -> "FlowSchedule":
        """A schedule whose position i is position k of another schedule, for each (schedule, k) in `rows`."""
        return replace(
            self,
            timesteps=torch.stack([schedule.timesteps[k] for schedule, k in rows]),
            sigmas=torch.stack([schedule.sigmas[k] for schedule, k in rows]),
            next_sigmas=torch.stack([schedule.next_sigmas[k] for schedule, k in rows]),
        )


def make_flow_schedule(
    scheduler: "FlowMatchEulerDiscreteScheduler",
    levels: int | Sequence[float],
    *,
    tokens: int,
    mu: float | None = None,
    rule: FlowRule = "ddim",
) -> FlowSchedule:
    """The noise levels of a pipeline's own scheduler, with its static or dynamic shift, for images of `tokens` tokens.

    `levels` is a number of steps, whose levels the scheduler spaces itself, or the levels before the shift; `mu` takes
    the place of the dynamic shift that the scheduler names. Raises UserError if the scheduler is configured for another
    kind of step. `solver_order` 2 in its configuration makes deterministic steps DPM-Solver++(2M)'s; diffusers' own
    multistep schedulers have that option, its flow matching has not.
    """
    config = scheduler.config
    for setting in ("stochastic_sampling", "invert_sigmas"):
        if config.get(setting):
            raise UserError(f"scheduler: {setting} is not supported; remove it from scheduler_config.json")
    order = config.get("solver_order", 1)
    if order not in (1, 2):
        raise UserError(f"scheduler: solver_order {order!r} is not supported; set 1 or 2 in scheduler_config.json")
    if not config.use_dynamic_shifting:
        mu = None
    elif mu is None:
        mu = dynamic_shift(scheduler, tokens)
    if isinstance(levels, int):
        scheduler.set_timesteps(levels, mu=mu)
    else:
        scheduler.set_timesteps(sigmas=list(levels), mu=mu)
    sigmas = scheduler.sigmas.float()
    return FlowSchedule(
        timesteps=scheduler.timesteps.float(),
        sigmas=sigmas[:-1].clone(),
        next_sigmas=sigmas[1:].clone(),
        rule=rule,
        solver_order=order,
    )


def dynamic_shift(scheduler: "FlowMatchEulerDiscreteScheduler", tokens: int) -> float:
    """The shift mu for an image of `tokens` tokens: linear between the two points that the scheduler names."""
    config = scheduler.config
    fewest, most = config.base_image_seq_len, config.max_image_seq_len
    return config.base_shift + (config.max_shift - config.base_shift) * (tokens - fewest) / (most - fewest)
