"""The denoising loop of candidates, training rollouts and evaluation."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch.profiler import record_function

from rlhf.data.prompts import Prompt
from rlhf.diffusion.denoising import decode_latents, denoise, finish_known, keep_known, not_finite, without_noise
from rlhf.diffusion.families.family import TextEmbedding, cells_of
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.noising import noise_again
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.steps.step_rule import Prediction, Schedule, Transition, transition_log_prob
from rlhf.diffusion.trajectories import NoisedSamples, Rollout, RolloutPlan, Trajectories
from rlhf.storage.images import composite

_Kept = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""A trained step: latents, next latents, log-prob [B], mean of the Gaussian."""


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

    All noise is drawn by (seed_key, prompt_id, sample index, step), so the result does not depend on the process
    that runs it, or on the number of retries. Raises UserError with the prompts whose images are not finite.
    """
    samples = len(sample_indices)
    condition, latent_mask = policy.family.encode_prompts(prompts)
    text = policy.embed(prompts)
    denoiser = Denoiser(policy, plan, cells_of(condition), text)
    latents, start, first = _run_shared_prefix(denoiser, prompts, condition, sample_indices, seed_key)
    condition = condition.repeat_interleave(samples, dim=0)
    latent_mask = torch.ones_like(latent_mask) if plan.log_prob_over == "all" else latent_mask
    latent_mask = latent_mask.repeat_interleave(samples, dim=0)
    keys = [(*seed_key, p.prompt_id, i) for p in prompts for i in sample_indices]
    kept: list[_Kept] = []
    for step in [step for step in plan.steps if step >= first]:
        is_random = step in plan.stochastic_steps and plan.eta > 0
        with record_function(f"denoise, step {step}"):
            transition = denoiser.step(latents, step, condition, plan.eta if is_random else 0.0)
        next_latents = transition.mean
        if is_random:
            noise = torch.stack([noise_like(latents.shape[1:], *key, step) for key in keys])
            next_latents = next_latents + transition.std_dev_t * noise.to(next_latents)
        if step in plan.trained_steps:
            log_prob = transition_log_prob(transition, next_latents, latent_mask)
            kept.append((latents, next_latents, log_prob, transition.mean))
        latents = denoiser.keep_known(next_latents, condition, start, step)
    latents = finish_known(latents, policy.family.known_latents(condition))
    finished = (latents, condition, latent_mask)
    recording = _record_noised(denoiser, *finished, keys) if plan.noised_steps else _record(kept, *finished, denoiser)
    painted = _decode(policy, prompts, latents, keys)
    return Rollout(images=painted, trajectories=recording, forward_images=denoiser.forward_images)


def _decode(
    policy: Policy, prompts: Sequence[Prompt], latents: torch.Tensor, keys: list[tuple[object, ...]]
) -> torch.Tensor:
    """The finished images [B, 3, H, W] of all prompts' samples, with the prompts' known pixels."""
    with record_function("decode"):
        decoded, is_finite = decode_latents(policy.family, latents)
    if not all(is_finite):
        bad = dict.fromkeys(key[-2] for key, good in zip(keys, is_finite, strict=True) if not good)
        raise not_finite(policy.name, f"prompt {', '.join(map(str, bad))}" if any(bad) else "this photograph")
    samples = len(keys) // len(prompts)
    images, masks = (
        torch.stack([getattr(p, part) for p in prompts]).repeat_interleave(samples, dim=0) for part in ("image", "mask")
    )
    return composite(decoded, images, masks)


def _record(
    kept: list[_Kept],
    latents: torch.Tensor,
    condition: torch.Tensor,
    latent_mask: torch.Tensor,
    denoiser: "Denoiser",
) -> Trajectories:
    """The records of the trained steps, in their order; `latents` are those at the end."""

    def stack(part: int, like: torch.Tensor) -> torch.Tensor:
        return torch.stack([step[part] for step in kept]).cpu() if kept else like.new_zeros((0, *like.shape))

    return Trajectories(
        condition=condition.cpu(),
        latent_mask=latent_mask.cpu(),
        latents=stack(0, latents),
        next_latents=stack(1, latents),
        old_log_prob=stack(2, latents[:, 0, 0, 0]),
        step_indices=denoiser.plan.trained_steps,
        old_mean=stack(3, latents) if denoiser.plan.keeps_means else None,
        text=denoiser.text.to("cpu"),
    )


class Denoiser:
    """Takes the steps of a plan one by one; remembers predictions, and counts images through the network."""

    def __init__(self, policy: Policy, plan: RolloutPlan, cells: tuple[int, int], text: TextEmbedding) -> None:
        self.policy, self.plan, self.text = policy, plan, text
        self.schedule: Schedule = policy.family.schedule(plan.num_inference_steps, cells).skip_to(plan.steps)
        self.forward_images = 0
        self._predictions: tuple[Prediction, ...] = ()

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor, *, is_trained: bool
    ) -> torch.Tensor:
        """The network's output for latents [B, C, h, w] at times [B]."""
        self.forward_images += len(latents)
        run = self.policy.predict if is_trained else self.policy.predict_untrained
        return run(latents, timestep, condition, self.text)

    def step(self, latents: torch.Tensor, step: int, condition: torch.Tensor, eta: float) -> Transition:
        """The transition from latents at position `step`.

        A deterministic step of higher order uses the predictions since the last random one.
        """
        index = torch.full((len(latents),), step)
        predict = partial(self.predict, condition=condition, is_trained=step in self.plan.trained_steps)
        transition = denoise(predict, latents, index, self.schedule, eta)
        if eta > 0:
            self._predictions = ()
            return transition
        order = max(self.schedule.solver_order, 2 if step in self.plan.second_order_steps else 1)
        mean, self._predictions = without_noise(transition, latents, self.schedule, step, self._predictions, order)
        return replace(transition, mean=mean)

    def branch(self) -> None:
        """Forget what was predicted: the next step is of other latents."""
        self._predictions = ()

    def keep_known(self, drawn: torch.Tensor, condition: torch.Tensor, start: torch.Tensor, step: int) -> torch.Tensor:
        """The latents after position `step`; `start` is the trajectory's initial noise."""
        known, index = self.policy.family.known_latents(condition), torch.full((len(drawn),), step)
        return keep_known(drawn, known, start, self.schedule, index)


def _record_noised(
    denoiser: Denoiser,
    clean: torch.Tensor,
    condition: torch.Tensor,
    latent_mask: torch.Tensor,
    keys: list[tuple[object, ...]],
) -> NoisedSamples:
    """Finished latents [B, C, h, w], each noised at steps of its own, with the network's predictions for them."""
    schedule = denoiser.schedule
    plan = denoiser.plan
    noised, steps = noise_again(schedule, clean, keys, plan.noised_steps, plan.noised_range)
    predictions = []
    for latents, index in zip(noised, steps, strict=True):
        timestep = schedule.timesteps[index].to(clean.device)
        predictions.append(denoiser.predict(latents, timestep, condition, is_trained=True))
    return NoisedSamples(
        condition=condition.cpu(),
        latent_mask=latent_mask.cpu(),
        clean_latents=clean.cpu(),
        latents=noised.cpu(),
        steps=steps,
        old_prediction=torch.stack(predictions).cpu(),
        text=denoiser.text.to("cpu"),
    )


def _run_shared_prefix(
    denoiser: Denoiser,
    prompts: Sequence[Prompt],
    condition: torch.Tensor,
    sample_indices: Sequence[int],
    seed_key: tuple[object, ...],
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Latents of all samples, their initial noise, and the first step still to be run.

    Samples of a group that shares its initial noise are identical until the first random step, so those steps are
    run once per prompt.
    """
    policy, plan = denoiser.policy, denoiser.plan
    shape = policy.family.latent_shape(*condition.shape[-2:])
    if not plan.shares_initial_noise:
        draws = [noise_like(shape, *seed_key, p.prompt_id, i, "start") for p in prompts for i in sample_indices]
        noise = torch.stack(draws).to(policy.device)
        if plan.first_step == 0:
            return noise, noise, 0
        clean = policy.family.encode_images(torch.stack([p.image for p in prompts]))
        clean = clean.repeat_interleave(len(sample_indices), dim=0)
        return start_from_images(denoiser.schedule, clean, noise, plan.first_step), noise, plan.first_step
    latents = start = torch.stack([noise_like(shape, *seed_key, p.prompt_id, "start") for p in prompts]).to(
        policy.device
    )
    first = min(plan.stochastic_steps, default=plan.num_inference_steps)
    for step in [step for step in plan.steps if step < first]:
        latents = denoiser.keep_known(denoiser.step(latents, step, condition, 0.0).mean, condition, start, step)
    denoiser.branch()
    latents, start = (part.repeat_interleave(len(sample_indices), dim=0) for part in (latents, start))
    return latents, start, first


def start_from_images(schedule: Schedule, clean: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
    """Initial latents [B, C, h, w] at position `step`, from images instead of noise (SDEdit, arXiv:2108.01073)."""
    return schedule.add_noise(clean, noise, torch.full((len(noise),), step))
