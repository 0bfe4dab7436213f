"""Jobs that are denoised together, each at a step of its own: joining, one step for all, leaving.

The step is `rlhf.diffusion.denoising.denoise`, as in training rollouts; a job alone gives the same images bit for bit.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from rlhf.data.buckets import Size
from rlhf.data.prompts import Prompt
from rlhf.diffusion.denoising import decode_latents, denoise, finish_known, keep_known, not_finite, without_noise
from rlhf.diffusion.families.family import TextEmbedding, cells_of
from rlhf.diffusion.noise import noise_like
from rlhf.diffusion.rollout import start_from_images
from rlhf.diffusion.steps.step_rule import Prediction, Schedule, Transition
from rlhf.errors import UserError
from rlhf.rewards.scores import Reward
from rlhf.storage.images import composite, image_to_tensor, mask_to_tensor, to_8bit
from serve.engine.jobs import Inpainted, Partial, SampleScore, TileJob
from serve.engine.policy_cache import LoadedPolicy, PolicyCache

Entry = TypeVar("Entry")
Result = TypeVar("Result")


@dataclass(kw_only=True, eq=False)
class RunningJob:
    """A job of n images between two of its steps."""

    job: TileJob
    policy: LoadedPolicy
    text: TextEmbedding
    """For one image."""
    prompt: Prompt
    schedule: Schedule
    condition: torch.Tensor
    """[n, K, h, w]."""
    noise: torch.Tensor
    """[n, C, h, w], the initial noise."""
    latents: torch.Tensor
    """[n, C, h, w]."""
    clean: torch.Tensor
    """[n, C, h, w], the estimate of the finished latents."""
    predictions: tuple[Prediction, ...] = ()
    """Of the steps just taken, as many as the schedule uses, the latest first."""
    step: int = 0
    """Number of steps that are done, or left out by a job that refines."""
    batch_sizes: list[int] = field(default_factory=list)
    """Number of images denoised together, for each step that was run."""

    @property
    def size(self) -> Size:
        """Height and width of its tile in pixels."""
        return self.prompt.size

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.job.num_inference_steps

    @property
    def partial_index(self) -> int | None:
        """Number of the estimate that is due after the steps done so far; None if none is due."""
        job = self.job
        due = [(i + 1) * job.num_inference_steps // (job.partial_images + 1) for i in range(job.partial_images)]
        return due.index(self.step) if self.step in due and not self.is_done else None


def check_steps(cache: PolicyCache, job: TileJob) -> None:
    """Raises UserError if the model has fewer steps than the job asks for."""
    family = cache.base.family
    family.schedule(job.num_inference_steps, (family.native_cells, family.native_cells))


@torch.no_grad()
def start_jobs(cache: PolicyCache, policies: Sequence[LoadedPolicy], jobs: Sequence[TileJob]) -> list[RunningJob]:
    """Draw the noise of jobs and encode their tiles; noise depends on seed, tile and sample index alone."""
    entries = [(policy, job, _to_prompt(job)) for policy, job in zip(policies, jobs, strict=True)]
    return _each_size(partial(_start_alike, cache), entries, lambda entry: entry[2].size)


def _each_size(
    run: Callable[[list[Entry]], Iterable[Result]], entries: Sequence[Entry], size_of: Callable[[Entry], Size]
) -> list[Result]:
    """What `run` gives for the entries of each size, in the order of all entries."""
    alike: dict[Size, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        alike[size_of(entry)].append(place)
    results: dict[int, Result] = {}
    for places in alike.values():
        results |= zip(places, run([entries[place] for place in places]), strict=True)
    return [results[place] for place in range(len(entries))]


def _start_alike(cache: PolicyCache, entries: Sequence[tuple[LoadedPolicy, TileJob, Prompt]]) -> list[RunningJob]:
    """Jobs whose tiles have one size."""
    base = cache.base
    conditions, _ = base.family.encode_prompts([prompt for _, _, prompt in entries])
    shape = base.family.latent_shape(*conditions.shape[-2:])
    started = []
    for (policy, job, prompt), condition in zip(entries, conditions, strict=True):
        schedule = base.family.schedule(job.num_inference_steps, cells_of(conditions))
        draws = [noise_like(shape, "serve", prompt.prompt_id, i, "start") for i in job.sample_indices]
        noise = torch.stack(draws).to(base.device)
        latents, step = _first_latents(cache, job, schedule, noise)
        started.append(
            RunningJob(
                job=job,
                policy=policy,
                text=cache.embed("" if job.guidance_scale is None else job.prompt, prompt),
                prompt=prompt,
                schedule=schedule,
                condition=condition.expand(len(latents), -1, -1, -1),
                noise=noise,
                latents=latents,
                clean=latents,
                step=step,
            )
        )
    return started


def _first_latents(
    cache: PolicyCache, job: TileJob, schedule: Schedule, noise: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Initial latents and the first step, which lies late in the schedule for a job that refines images."""
    if job.start is None:
        return noise, 0
    step = job.num_inference_steps - max(1, round(job.strength * job.num_inference_steps))
    images = torch.stack([image_to_tensor(image) for image in job.start])
    return start_from_images(schedule, cache.base.family.encode_images(images), noise, step), step


def _to_prompt(job: TileJob) -> Prompt:
    return Prompt(
        prompt_id=f"{job.seed}/{job.tile}" if job.tile else str(job.seed),
        photograph="",
        source="serve",
        hole="",
        split="",
        image=image_to_tensor(job.image),
        mask=mask_to_tensor(job.hole),
    )


@torch.no_grad()
def advance(cache: PolicyCache, running: Sequence[RunningJob]) -> None:
    """Take one denoising step of every job; jobs of one network and one size share a forward pass."""
    alike: dict[tuple[int, Size], list[RunningJob]] = defaultdict(list)
    for one in running:
        alike[id(one.policy.network), one.size].append(one)
    for group in alike.values():
        latents = torch.cat([one.latents for one in group])
        rows = [(one.schedule, one.step) for one in group for _ in one.job.sample_indices]
        schedule = rows[0][0].at_rows(rows)
        step = denoise(partial(_predict, cache, group), latents, torch.arange(len(rows)), schedule)
        sizes = [len(one.latents) for one in group]
        known = cache.base.family.known_latents(torch.cat([one.condition for one in group]))
        noise, index = torch.cat([one.noise for one in group]), torch.arange(len(rows))
        jobs = zip(group, step.split(sizes), latents.split(sizes), strict=True)
        drawn = torch.cat([_next_latents(*job) for job in jobs])
        after, clean = keep_known(drawn, known, noise, schedule, index), finish_known(step.clean, known)
        for one, *parts in zip(group, after.split(sizes), clean.split(sizes), strict=True):
            (one.latents, one.clean), one.step = parts, one.step + 1
            one.batch_sizes.append(len(latents))


def _next_latents(one: RunningJob, step: Transition, latents: torch.Tensor) -> torch.Tensor:
    """What follows a job's `latents`, as a rollout without noise takes its steps."""
    drawn, one.predictions = without_noise(
        step, latents, one.schedule, one.step, one.predictions, one.schedule.solver_order
    )
    return drawn


def _predict(
    cache: PolicyCache, group: Sequence[RunningJob], latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The network's output for every image; guided images take two rows (arXiv:2207.12598, eq. 6)."""
    condition = torch.cat([one.condition for one in group])
    owners = [one for one in group for _ in one.job.sample_indices]
    scales = [one.job.guidance_scale for one in owners]
    guided = [i for i, scale in enumerate(scales) if scale not in (None, cache.base.family.unguided_scale)]
    rows = torch.tensor([*range(len(owners)), *guided], device=latents.device)
    adapters = [owners[int(i)].policy.adapter for i in rows]
    texts = [one.text for one in owners] + [owners[i].text.negative or cache.base.text for i in guided]
    text = texts[0] if all(one is texts[0] for one in texts) else TextEmbedding.join(texts)
    output = cache.predict(group[0].policy.network, adapters, latents[rows], timesteps[rows], condition[rows], text)
    towards, away = output[: len(owners)], output[len(owners) :]
    if guided:
        scale = output.new_tensor([float(scales[i] or 0.0) for i in guided]).view(-1, 1, 1, 1)
        led = cache.base.family.guide(towards[guided], away, scale)
        towards = towards.index_copy(0, rows[len(owners) :], led)
    return towards


@torch.no_grad()
def estimate(cache: PolicyCache, running: Sequence[RunningJob]) -> list[Partial | UserError]:
    """The images that each job would end with, as its steps so far predict them; an error if they are not finite."""
    return _each_size(partial(_estimate_alike, cache), running, lambda one: one.size)


def _estimate_alike(cache: PolicyCache, running: Sequence[RunningJob]) -> list[Partial | UserError]:
    images, _, errors = _decode(cache, running, [one.clean for one in running])
    sizes = np.cumsum([len(one.latents) for one in running])[:-1]
    parts = np.split(_to_pixels(images), sizes)
    return [
        error or Partial(images=part, index=one.partial_index or 0)
        for one, part, error in zip(running, parts, errors, strict=True)
    ]


@torch.no_grad()
def finish(cache: PolicyCache, reward: Reward | None, done: Sequence[RunningJob]) -> list[Inpainted | UserError]:
    """Decode, composite, score and check finished jobs; the engine fills in the times.

    A job whose images are not finite gets an error, and no other job of the batch does.
    """
    return _each_size(partial(_finish_alike, cache, reward), done, lambda one: one.size)


def _finish_alike(cache: PolicyCache, reward: Reward | None, done: Sequence[RunningJob]) -> list[Inpainted | UserError]:
    known_latents = cache.base.family.known_latents
    finished = [finish_known(one.latents, known_latents(one.condition)) for one in done]
    images, masks, errors = _decode(cache, done, finished)
    pixels = _to_pixels(images)
    captions = [one.job.prompt for one in done for _ in one.job.sample_indices]
    scores = _score(reward, images, masks, captions) if reward is not None else []
    unsafe = cache.base.family.find_unsafe(pixels)
    answers: list[Inpainted | UserError] = []
    start = 0
    for one, error in zip(done, errors, strict=True):
        span = slice(start, start := start + len(one.latents))
        answers.append(
            error
            or Inpainted(
                images=pixels[span],
                scores=tuple(scores[span]),
                unsafe=tuple(unsafe[span]),
                queued_s=0.0,
                denoised_s=0.0,
                batch_images=float(np.mean(one.batch_sizes)),
            )
        )
    return answers


def _decode(
    cache: PolicyCache, running: Sequence[RunningJob], latents: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, list[UserError | None]]:
    """Finished tiles [B, 3, H, W] in [-1, 1], with the known pixels of the input, and masks [B, 1, H, W].

    Last the error of each job, if one of its tiles is not finite; such a tile is grey.
    """
    images = torch.cat([one.prompt.image.expand(len(one.latents), -1, -1, -1) for one in running])
    masks = torch.cat([one.prompt.mask.expand(len(one.latents), -1, -1, -1) for one in running])
    decoded, is_finite = decode_latents(cache.base.family, torch.cat(latents))
    rows, errors = iter(is_finite), []
    for one in running:
        is_sound = all([next(rows) for _ in range(len(one.latents))])
        name = one.job.policy.folder or cache.base.name
        errors.append(None if is_sound else not_finite(str(name), "this request"))
    return composite(decoded.nan_to_num(0.0), images, masks), masks, errors


def _to_pixels(images: torch.Tensor) -> np.ndarray:
    return to_8bit(images).permute(0, 2, 3, 1).contiguous().numpy()


def _score(reward: Reward, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> list[SampleScore]:
    """Returns reward and bound of every image; None for what is not finite, or not known."""
    scored = reward.score(images, masks, captions)
    rows = zip(*(column.tolist() for column in (scored.reward, scored.lower, scored.upper)), strict=True)
    return [SampleScore(*(value if math.isfinite(value) else None for value in row)) for row in rows]
