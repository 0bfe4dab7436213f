"""DDIM (arXiv:2010.02502) as a stochastic step rule, with DPM-Solver++(2M) for deterministic steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rlhf.diffusion.steps.step_rule import Prediction, Transition, per_image, skip_levels
from rlhf.errors import UserError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


@dataclass(frozen=True, kw_only=True)
class DDIMSchedule:
    """A `Schedule` of variance-preserving noise levels."""

    timesteps: torch.Tensor
    """int64 [T], descending."""
    alphas_cumprod: torch.Tensor
    """float32 [T], alpha-bar at each timestep."""
    next_alphas_cumprod: torch.Tensor
    """float32 [T], alpha-bar after each step."""
    prediction_type: str
    """`epsilon`, `v_prediction` or `sample`."""
    clip_range: float | None = None
    """Predicted clean latents are clipped to +/- this; None leaves them as they are."""
    solver_order: int = 1
    """DDIM's deterministic steps are of first order."""

    def transition(
        self, model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor, eta: float
    ) -> Transition:
        """Mean and deviation of the next latents (DDIM, eq. 12 and 16); `eta` scales the deviation, 0 to 1."""
        alpha = per_image(self.alphas_cumprod, step_index, latents)
        alpha_next = per_image(self.next_alphas_cumprod, step_index, latents)
        clean, noise = self._split(model_output, latents, alpha)
        variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        std_dev_t = eta * variance.clamp(min=0).sqrt()
        mean = alpha_next.sqrt() * clean + (1 - alpha_next - std_dev_t**2).clamp(min=0).sqrt() * noise
        return Transition(mean=mean, std_dev_t=std_dev_t, clean=clean)

    def _split(
        self, model_output: torch.Tensor, latents: torch.Tensor, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents and noise, each [B, C, h, w], from a prediction of either, or of their velocity.

        The noise belongs to the clean latents before they are clipped, as in diffusers.
        """
        if self.prediction_type == "epsilon":
            clean, noise = (latents - (1 - alpha).sqrt() * model_output) / alpha.sqrt(), model_output
        elif self.prediction_type == "v_prediction":
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * model_output
            noise = alpha.sqrt() * model_output + (1 - alpha).sqrt() * latents
        else:
            clean, noise = model_output, (latents - alpha.sqrt() * model_output) / (1 - alpha).sqrt()
        return (clean if self.clip_range is None else clean.clamp(-self.clip_range, self.clip_range)), noise

    def predicted_clean(
        self, model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor
    ) -> torch.Tensor:
        """The finished latents [B, C, h, w] that a prediction for `latents` implies."""
        return self._split(model_output, latents, per_image(self.alphas_cumprod, step_index, latents))[0]

    def target_output(self, clean: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """The network's output for `latents` that implies the finished latents `clean` [B, C, h, w]."""
        alpha = per_image(self.alphas_cumprod, step_index, latents)
        if self.prediction_type == "epsilon":
            return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        if self.prediction_type == "v_prediction":
            return (alpha.sqrt() * latents - clean) / (1 - alpha).sqrt()
        return clean

    def multistep(self, predictions: Sequence[Prediction]) -> torch.Tensor:
        """The next latents by DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), from the first two predictions.

        The formula is DDIM's deterministic step from clean latents that are extrapolated from both. The step must not
        end at noise level 0, whose log-SNR is infinite.
        """
        now, last = predictions[:2]
        levels = torch.stack([*self.alphas_cumprod[[last.step, now.step]], self.next_alphas_cumprod[now.step]]).double()
        before, here, after = (torch.logit(levels) / 2).tolist()
        extrapolated = now.clean + (after - here) / (2 * (here - before)) * (now.clean - last.clean)
        index = torch.full((len(now.latents),), now.step)
        from_clean = replace(self, prediction_type="sample", clip_range=None)
        return from_clean.transition(extrapolated, now.latents, index, 0.0).mean

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] mixed with noise at the levels of positions `step_index` (int64 [B])."""
        alpha = per_image(self.alphas_cumprod, step_index, clean)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def add_noise_after(self, clean: torch.Tensor, noise: torch.Tensor, step_index: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] mixed with noise at the levels that the steps at `step_index` end at."""
        return replace(self, alphas_cumprod=self.next_alphas_cumprod).add_noise(clean, noise, step_index)

    def skip_to(self, visited: Sequence[int]) -> "DDIMSchedule":
        """The schedule that runs only the positions `visited` [ascending]; each leads to the next one's noise level."""
        return replace(self, next_alphas_cumprod=skip_levels(self.next_alphas_cumprod, visited))

    def at_rows(self, rows: "Sequence[tuple[DDIMSchedule, int]]") -> "DDIMSchedule":
        """A schedule whose position i is position k of another schedule, for each (schedule, k) in `rows`."""
        return replace(
            self,
            timesteps=torch.stack([schedule.timesteps[k] for schedule, k in rows]),
            alphas_cumprod=torch.stack([schedule.alphas_cumprod[k] for schedule, k in rows]),
            next_alphas_cumprod=torch.stack([schedule.next_alphas_cumprod[k] for schedule, k in rows]),
        )


def make_schedule(scheduler: "DDIMScheduler", num_inference_steps: int) -> DDIMSchedule:
    """The schedule of diffusers' DDIMScheduler in `num_inference_steps` steps.

    Each step ends at the level that the next call of the network is told. DDIMScheduler's own steps end elsewhere if
    timesteps are not equally far apart (`linspace`, `trailing`). Raises UserError if the model has fewer timesteps.
    """
    config = scheduler.config
    most = config.num_train_timesteps
    if num_inference_steps <= most:
        scheduler.set_timesteps(num_inference_steps)
        # A rounding error adds a timestep -1 to some of `trailing`.
        timesteps = scheduler.timesteps[:num_inference_steps].to(torch.int64)
    if num_inference_steps > most or not bool(((timesteps >= 0) & (timesteps < most)).all()):
        raise UserError(
            f"{num_inference_steps} denoising steps: the model's scheduler has {most} timesteps (steps_offset "
            f"{config.steps_offset}); take fewer steps"
        )
    table, after_last = scheduler.alphas_cumprod.float(), int(timesteps[-1]) - most // num_inference_steps
    has_end = config.timestep_spacing == "leading" and after_last >= 0  # A large steps_offset leaves noise.
    end = table[after_last] if has_end else scheduler.final_alpha_cumprod.float()
    return DDIMSchedule(
        timesteps=timesteps,
        alphas_cumprod=table[timesteps],
        next_alphas_cumprod=torch.cat([table[timesteps[1:]], end[None]]),
        prediction_type=config.prediction_type,
        clip_range=config.clip_sample_range if config.clip_sample else None,
    )
