"""One denoising step, the known image's place in its result, and the images at its end: wherever models paint."""

from collections.abc import Callable, Sequence

import torch

from rlhf.diffusion.families.family import ModelFamily
from rlhf.diffusion.steps.step_rule import Prediction, Schedule, Transition
from rlhf.errors import UserError

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A forward pass of the network: latents [B, C, h, w] and times [B] to its output, float32 [B, C, h, w]."""


@torch.no_grad()
def denoise(
    predict: Predict, latents: torch.Tensor, step_index: torch.Tensor, schedule: Schedule, eta: float = 0.0
) -> Transition:
    """The transition of latents [B, C, h, w] at positions `step_index` (int64 [B], on the CPU) of the schedule."""
    output = predict(latents, schedule.timesteps[step_index].to(latents.device))
    return schedule.transition(output, latents, step_index, eta)


def without_noise(
    transition: Transition,
    latents: torch.Tensor,
    schedule: Schedule,
    step: int,
    before: Sequence[Prediction],
    order: int,
) -> tuple[torch.Tensor, tuple[Prediction, ...]]:
    """The next latents of a deterministic step at position `step`, and the predictions that the one after it may use.

    `before` are those of the steps before it, the latest first; up to `order` predictions make the step.
    """
    predictions = (Prediction(step=step, latents=latents, clean=transition.clean), *before)[:order]
    return (schedule.multistep(predictions) if len(predictions) > 1 else transition.mean), predictions


def keep_known(
    drawn: torch.Tensor,
    known: tuple[torch.Tensor, torch.Tensor] | None,
    noise: torch.Tensor,
    schedule: Schedule,
    step_index: torch.Tensor,
) -> torch.Tensor:
    """The latents after a step, with the known image in its place, noised by the trajectory's own initial `noise`.

    All shapes [B, C, h, w]; `known` is what `ModelFamily.known_latents` gives. Without it the latents are those drawn.
    """
    if known is None:
        return drawn
    hole, clean = known
    return (1 - hole) * schedule.add_noise_after(clean, noise, step_index) + hole * drawn


def finish_known(latents: torch.Tensor, known: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Finished latents [B, C, h, w], with the known image's own latents outside the hole.

    Cells that a fractional mask shares have their blend from the last step's `keep_known`.
    """
    return latents if known is None else torch.where(known[0] > 0, latents, known[1])


@torch.no_grad()
def decode_latents(family: ModelFamily, latents: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """Images [B, 3, H, W] on the CPU, and whether each is finite, with its latents [B, C, h, w].

    An image that is not finite must not be shown: rounded to 8 bits it would be black.
    """
    images = family.decode(latents).cpu()
    is_finite = torch.isfinite(latents).flatten(1).all(1).cpu() & torch.isfinite(images).flatten(1).all(1)
    return images, is_finite.tolist()


def not_finite(model: str, subject: str) -> UserError:
    """The error for images of `subject` that are not finite, painted by `model`."""
    return UserError(
        f"{model}: paints numbers that are not finite for {subject}; its weights are damaged, or too large for "
        "model.precision; use other weights, or fp32"
    )
