"""The denoising loop of candidates, training rollouts and evaluation; serving takes the same steps, bit for bit."""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.steps.ddim import (
    Schedule,
    make_schedule,
    second_order_latents,
    skip_to,
    split_prediction,
    transition_log_prob,
    transition_mean,
)
from rlhf.diffusion.trajectories import NoisedSamples, Recording, Rollout, RolloutPlan, Trajectories
from rlhf.errors import UserError
from rlhf.storage.images import blank_hole, composite

DECODED_PIXELS = 2**22
"""Decoded at once, 16 images of 512 px: with twice as many a tensor inside SD's VAE has 2^31 elements."""


def noise_like(shape: Sequence[int], *key: object) -> torch.Tensor:
    """Standard normal noise that depends on `key` alone, not on who draws it, or when."""
    return torch.randn(tuple(shape), generator=_generator_of(key))


def _generator_of(key: tuple[object, ...]) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@torch.no_grad()
def encode_prompts(policy: Policy, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Condition [P, 5, h, w] and latent hole mask [P, 1, h, w], once per prompt.

    The condition's mask is sampled as diffusers' pipeline does (nearest), so that the model folder
    works there; the hole mask of log-probs holds every cell that touches the hole.
    """
    height, width, factor = *prompts[0].mask.shape[-2:], policy.pipeline.vae_scale_factor
    if height % factor or width % factor:
        raise UserError(
            f"prompts of {width}x{height} px: this model paints multiples of {factor} px; "
            "cut others with --set prompts.size_px, or name another model"
        )
    images = torch.stack([p.image for p in prompts]).to(policy.device)
    masks = torch.stack([p.mask for p in prompts]).to(policy.device)
    masked_image_latents = encode_images(policy, blank_hole(images, masks))
    size = masked_image_latents.shape[-2:]
    condition = torch.cat([F.interpolate(masks, size=size), masked_image_latents], dim=1)
    return condition, F.adaptive_max_pool2d(masks, size)


@torch.no_grad()
def encode_images(policy: Policy, images: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in [-1, 1] to scaled latents [B, 4, h, w]: the posterior's mode."""
    vae = policy.pipeline.vae
    return vae.encode(images.to(policy.device)).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(policy: Policy, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, 4, h, w] to images [B, 3, H, W] in about [-1, 1]."""
    vae = policy.pipeline.vae
    pixels = latents.shape[-2] * latents.shape[-1] * policy.pipeline.vae_scale_factor**2
    parts = (latents / vae.config.scaling_factor).split(max(1, DECODED_PIXELS // pixels))
    return torch.cat([vae.decode(part).sample.float() for part in parts])


@torch.no_grad()
def rollout(
    policy: Policy,
    prompts: Sequence[Prompt],
    plan: RolloutPlan,
    *,
    sample_indices: Sequence[int],
    seed_key: tuple[object, ...],
) -> Rollout:
    """Inpaint every prompt once per entry of `sample_indices`.

    All noise is drawn by (seed_key, prompt_id, sample index, step), so the result does not depend
    on which process runs it or how often it was retried.
    """
    schedule = skip_to(make_schedule(policy.scheduler, plan.num_inference_steps), plan.steps)
    condition, latent_mask = encode_prompts(policy, prompts)
    denoiser = _Denoiser(policy, plan, schedule)
    latents, first = _run_shared_prefix(denoiser, prompts, condition, sample_indices, seed_key)
    condition = condition.repeat_interleave(len(sample_indices), dim=0)
    latent_mask = torch.ones_like(latent_mask) if plan.log_prob_over == "all" else latent_mask
    latent_mask = latent_mask.repeat_interleave(len(sample_indices), dim=0)
    keys = [(*seed_key, p.prompt_id, i) for p in prompts for i in sample_indices]
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for step in [step for step in plan.steps if step >= first]:
        eta = plan.eta if step in plan.stochastic_steps else 0.0
        mean, std_dev_t = denoiser.denoise(latents, step, condition, eta)
        next_latents = mean
        if eta > 0:
            noise = torch.stack([noise_like(latents.shape[1:], *key, step) for key in keys])
            next_latents = mean + std_dev_t * noise.to(mean)
        if step in plan.trained_steps:
            log_prob = transition_log_prob(mean, std_dev_t, next_latents, latent_mask)
            kept.append((latents, next_latents, log_prob))
        latents = next_latents
    images = torch.stack([p.image for p in prompts]).repeat_interleave(len(sample_indices), dim=0)
    masks = torch.stack([p.mask for p in prompts]).repeat_interleave(len(sample_indices), dim=0)
    recording: Recording = (
        _noise_again(denoiser, latents, condition, latent_mask, keys)
        if plan.noised_steps
        else _record(kept, latents, condition, latent_mask, plan)
    )
    painted = composite(decode_latents(policy, latents).cpu(), images, masks)
    return Rollout(images=painted, trajectories=recording, forward_images=denoiser.forward_images)


def _record(
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    latents: torch.Tensor,
    condition: torch.Tensor,
    latent_mask: torch.Tensor,
    plan: RolloutPlan,
) -> Trajectories:
    """Latents, next latents and log-prob of the trained steps, in their order; `latents` are those at the end."""
    empty = latents.new_zeros((0, *latents.shape))
    return Trajectories(
        condition=condition.cpu(),
        latent_mask=latent_mask.cpu(),
        latents=torch.stack([k[0] for k in kept]).cpu() if kept else empty,
        next_latents=torch.stack([k[1] for k in kept]).cpu() if kept else empty,
        old_log_prob=torch.stack([k[2] for k in kept]).cpu() if kept else latents.new_zeros((0, len(latents))),
        step_indices=plan.trained_steps,
    )


class _Denoiser:
    """Takes the steps of a plan one by one; remembers the last prediction, and counts what it asks of the UNet."""

    def __init__(self, policy: Policy, plan: RolloutPlan, schedule: Schedule) -> None:
        self.policy, self.plan, self.schedule = policy, plan, schedule
        self.forward_images = 0
        self._previous: tuple[int, torch.Tensor] | None = None

    def predict(
        self, latents: torch.Tensor, index: torch.Tensor, condition: torch.Tensor, *, is_trained: bool
    ) -> torch.Tensor:
        """The UNet's output for latents at positions `index` [B] of the schedule."""
        self.forward_images += len(latents)
        run = self.policy.predict if is_trained else self.policy.predict_untrained
        return run(latents, self.schedule.timesteps[index].to(self.policy.device), condition)

    def denoise(
        self, latents: torch.Tensor, step: int, condition: torch.Tensor, eta: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the next latents, as `transition_mean` has them."""
        index = torch.full((len(latents),), step)
        output = self.predict(latents, index, condition, is_trained=step in self.plan.trained_steps)
        mean, std_dev_t = transition_mean(output, latents, index, self.schedule, eta)
        if self.plan.second_order_steps:
            clean, _ = split_prediction(output, latents, index, self.schedule)
            if step in self.plan.second_order_steps:
                assert self._previous is not None, "a plan's first step is of first order"
                before, previous_clean = self._previous
                mean = second_order_latents(clean, previous_clean, latents, step, before, self.schedule)
            self._previous = (step, clean)
        return mean, std_dev_t


def _noise_again(
    denoiser: _Denoiser,
    clean: torch.Tensor,
    condition: torch.Tensor,
    latent_mask: torch.Tensor,
    keys: list[tuple[object, ...]],
) -> NoisedSamples:
    """Finished latents [B, 4, h, w], each noised at steps of its own, and what the UNet says of them."""
    plan, schedule = denoiser.plan, denoiser.schedule
    order = [torch.randperm(plan.num_inference_steps, generator=_generator_of((*key, "steps"))) for key in keys]
    steps = torch.stack(order, dim=1)[: plan.noised_steps]
    latents, predictions = [], []
    for k, index in enumerate(steps):
        noise = torch.stack([noise_like(clean.shape[1:], *key, "noised", k) for key in keys]).to(clean)
        alpha = schedule.alphas_cumprod[index].view(-1, 1, 1, 1).to(clean)
        latents.append(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise)
        predictions.append(denoiser.predict(latents[-1], index, condition, is_trained=True))
    return NoisedSamples(
        condition=condition.cpu(),
        latent_mask=latent_mask.cpu(),
        clean_latents=clean.cpu(),
        latents=torch.stack(latents).cpu(),
        steps=steps,
        old_prediction=torch.stack(predictions).cpu(),
    )


def _run_shared_prefix(
    denoiser: _Denoiser,
    prompts: Sequence[Prompt],
    condition: torch.Tensor,
    sample_indices: Sequence[int],
    seed_key: tuple[object, ...],
) -> tuple[torch.Tensor, int]:
    """Initial latents of all samples, and the first step still to be run.

    Where a group shares its initial noise its samples are identical until the first random step,
    so that prefix is computed once per prompt.
    """
    policy, plan = denoiser.policy, denoiser.plan
    shape = (policy.latent_channels, *condition.shape[-2:])
    if not plan.shares_initial_noise:
        draws = [noise_like(shape, *seed_key, p.prompt_id, i, "start") for p in prompts for i in sample_indices]
        noise = torch.stack(draws).to(policy.device)
        if plan.first_step == 0:
            return noise, 0
        clean = encode_images(policy, torch.stack([p.image for p in prompts]))
        clean = clean.repeat_interleave(len(sample_indices), dim=0)
        alpha = denoiser.schedule.alphas_cumprod[plan.first_step]
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, plan.first_step
    latents = torch.stack([noise_like(shape, *seed_key, p.prompt_id, "start") for p in prompts]).to(policy.device)
    first = min(plan.stochastic_steps, default=plan.num_inference_steps)
    for step in [step for step in plan.steps if step < first]:
        latents, _ = denoiser.denoise(latents, step, condition, 0.0)
    return latents.repeat_interleave(len(sample_indices), dim=0), first
