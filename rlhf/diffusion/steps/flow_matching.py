"""Flow matching (arXiv:2210.02747) as a stochastic step rule, with a linear multistep method for deterministic steps.

Latents at noise level s are x = (1 - s) x0 + s e; the network predicts the velocity v = e - x0. Hence x0 = x - s v and
e = x + (1 - s) v.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from rlhf.diffusion.steps.step_rule import Prediction, Transition, per_image, skip_levels
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
    """Number of predictions that deterministic steps use; with 1 they are Euler's."""

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

    def multistep(self, predictions: Sequence[Prediction]) -> torch.Tensor:
        """The next latents by a linear multistep method, as diffusers' LMSDiscreteScheduler has for other models.

        The velocity is taken for the polynomial in the noise level that passes through those predicted.
        """
        now, levels = predictions[0], [float(self.sigmas[one.step]) for one in predictions]
        weights = _linear_multistep(levels, float(self.next_sigmas[now.step]))
        velocities = [(one.latents - one.clean) / level for one, level in zip(predictions, levels, strict=True)]
        return now.latents + sum(weight * one for weight, one in zip(weights, velocities, strict=True))

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


def _linear_multistep(levels: Sequence[float], after: float) -> list[float]:
    """Weights of the slopes at `levels`, of which the first is the present one, in the step to the level `after`.

    They are the integrals of the Lagrange polynomials: Adams' and Bashforth's for steps of unequal length.
    """
    weights = []
    for level in levels:
        others = [other for other in levels if other != level]
        integral = np.polyint(np.atleast_1d(np.poly(others)) / np.prod([level - other for other in others]))
        weights.append(float(np.polyval(integral, after) - np.polyval(integral, levels[0])))
    return weights


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
    kind of step. `solver_order` 2 or 3 in its configuration makes deterministic steps those of a linear multistep
    method; diffusers' own multistep schedulers have that option, its flow matching has not.
    """
    config = scheduler.config
    for setting in ("stochastic_sampling", "invert_sigmas"):
        if config.get(setting):
            raise UserError(f"scheduler: {setting} is not supported; remove it from scheduler_config.json")
    order = config.get("solver_order", 1)
    if order not in (1, 2, 3):
        raise UserError(f"scheduler: solver_order {order!r} is not supported; set 1, 2 or 3 in scheduler_config.json")
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
