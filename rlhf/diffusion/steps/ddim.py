"""DDIM as a stochastic policy: mean, deviation and log-density of one denoising step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The noise levels that `num_inference_steps` denoising steps pass through."""

    timesteps: torch.Tensor
    """int64 [T], descending; what the UNet is told."""
    alphas_cumprod: torch.Tensor
    """float32 [T], alpha-bar at each timestep."""
    next_alphas_cumprod: torch.Tensor
    """float32 [T], alpha-bar after each step."""
    prediction_type: str
    """`epsilon`, `v_prediction` or `sample`."""


def make_schedule(scheduler: "DDIMScheduler", num_inference_steps: int) -> Schedule:
    """The schedule that diffusers' DDIMScheduler walks through with as many steps."""
    scheduler.set_timesteps(num_inference_steps)
    timesteps = scheduler.timesteps.to(torch.int64)
    stride = scheduler.config.num_train_timesteps // num_inference_steps
    following = timesteps - stride
    table = scheduler.alphas_cumprod.float()
    after = torch.where(following >= 0, table[following.clamp(min=0)], scheduler.final_alpha_cumprod.float())
    return Schedule(
        timesteps=timesteps,
        alphas_cumprod=table[timesteps],
        next_alphas_cumprod=after,
        prediction_type=scheduler.config.prediction_type,
    )


def skip_to(schedule: Schedule, visited: Sequence[int]) -> Schedule:
    """The schedule of which only the positions `visited` [ascending] are run, each leading to the next one's level."""
    after = schedule.next_alphas_cumprod.clone()
    ends = [following - 1 for following in visited[1:]] + [len(after) - 1]
    after[list(visited)] = schedule.next_alphas_cumprod[ends]
    return replace(schedule, next_alphas_cumprod=after)


def second_order_latents(
    clean: torch.Tensor,
    previous_clean: torch.Tensor,
    latents: torch.Tensor,
    step: int,
    previous: int,
    schedule: Schedule,
) -> torch.Tensor:
    """The next latents by DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), deterministic.

    Its formula is DDIM's deterministic step from clean latents that are extrapolated from the predictions at `step` and
    at `previous`, the position that was run before it. Shapes: clean, previous_clean (see `split_prediction`) and
    latents [B, C, h, w]. No step to noise level 0, of which the log-SNR is infinite.
    """
    levels = torch.stack([*schedule.alphas_cumprod[[previous, step]], schedule.next_alphas_cumprod[step]]).double()
    before, here, after = (torch.logit(levels) / 2).tolist()
    extrapolated = clean + (after - here) / (2 * (here - before)) * (clean - previous_clean)
    index = torch.full((len(latents),), step)
    return transition_mean(extrapolated, latents, index, replace(schedule, prediction_type="sample"), 0.0)[0]


def transition_mean(
    model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor, schedule: Schedule, eta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the next latents (DDIM, arXiv:2010.02502, eq. 12 and 16).

    Shapes: model_output, latents [B, C, h, w]; step_index int64 [B], the position in the schedule.
    Returns the mean [B, C, h, w] and `std_dev_t` [B, 1, 1, 1], which is 0 where eta is 0.
    """
    alpha = schedule.alphas_cumprod[step_index].view(-1, 1, 1, 1).to(latents)
    alpha_next = schedule.next_alphas_cumprod[step_index].view(-1, 1, 1, 1).to(latents)
    clean, noise = split_prediction(model_output, latents, step_index, schedule)
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    std_dev_t = eta * variance.clamp(min=0).sqrt()
    mean = alpha_next.sqrt() * clean + (1 - alpha_next - std_dev_t**2).clamp(min=0).sqrt() * noise
    return mean, std_dev_t


def split_prediction(
    model_output: torch.Tensor, latents: torch.Tensor, step_index: torch.Tensor, schedule: Schedule
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latents and the noise, each [B, C, h, w], of which a prediction says that `latents` are mixed.

    Shapes as in `transition_mean`.
    """
    alpha = schedule.alphas_cumprod[step_index].view(-1, 1, 1, 1).to(latents)
    if schedule.prediction_type == "epsilon":
        return (latents - (1 - alpha).sqrt() * model_output) / alpha.sqrt(), model_output
    if schedule.prediction_type == "v_prediction":
        clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * model_output
        return clean, alpha.sqrt() * model_output + (1 - alpha).sqrt() * latents
    return model_output, (latents - alpha.sqrt() * model_output) / (1 - alpha).sqrt()


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the elements where mask is 1. Shapes [B, C, h, w], [B, 1, h, w]; returns [B]."""
    weights = mask.expand_as(values)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


def transition_log_prob(
    mean: torch.Tensor, std_dev_t: torch.Tensor, next_latents: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Log-density of `next_latents` under N(mean, std_dev_t^2 I), where `mask` is 1: in the hole, by default.

    Shapes: mean, next_latents [B, C, h, w]; std_dev_t [B, 1, 1, 1]; mask [B, 1, h, w].
    Returns [B], in nats per latent element: the mean over the elements where mask is 1, so that
    `clip_range` means the same for a small hole and a large one.

    Raises ValueError where a deviation is 0: the move is then deterministic and has no density.
    """
    if bool((std_dev_t <= 0).any()):
        raise ValueError("a deterministic step has no log-density; use eta > 0")
    log_density = -0.5 * ((next_latents - mean) / std_dev_t) ** 2 - std_dev_t.log() - 0.5 * math.log(2 * math.pi)
    return masked_mean(log_density, mask)


def transition_kl(
    mean: torch.Tensor, base_mean: torch.Tensor, std_dev_t: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """KL(policy || base) of one step, where `mask` is 1: both are Gaussians of the same deviation.

    Shapes as in `transition_log_prob`. Returns [B], in nats per latent element.
    """
    return masked_mean(((mean - base_mean) / std_dev_t) ** 2 / 2, mask)
