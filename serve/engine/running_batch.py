"""Jobs that are denoised together, each at a step of its own: joining, one step for all, leaving.

The steps are those of `rlhf.diffusion.rollout.rollout`; a job alone gives its images bit for bit.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.stable_diffusion import TextEmbedding
from rlhf.diffusion.rollout import decode_latents, encode_images, encode_prompts, noise_like
from rlhf.diffusion.steps.ddim import Schedule, make_schedule, split_prediction, transition_mean
from rlhf.rewards.scores import Reward
from rlhf.storage.images import composite, image_to_tensor, mask_to_tensor, to_8bit
from serve.engine.jobs import Inpainted, Job, Partial
from serve.engine.policy_cache import LoadedPolicy, PolicyShelf


@dataclass(kw_only=True, eq=False)
class RunningJob:
    """A job between two of its steps."""

    job: Job
    policy: LoadedPolicy
    text: TextEmbedding
    """Of one image."""
    prompt: Prompt
    schedule: Schedule
    condition: torch.Tensor
    """[n, 5, h, w]."""
    latents: torch.Tensor
    """[n, 4, h, w]."""
    clean: torch.Tensor
    """[n, 4, h, w], the estimate of the finished latents."""
    step: int = 0
    """Steps that are done, or left out by a job that refines."""
    batch_sizes: list[int] = field(default_factory=list)
    """Per step that was run, the images that were denoised together."""

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.job.num_inference_steps

    @property
    def partial_index(self) -> int | None:
        """Which estimate is due after the steps that are done."""
        job = self.job
        due = [(i + 1) * job.num_inference_steps // (job.partial_images + 1) for i in range(job.partial_images)]
        return due.index(self.step) if self.step in due and not self.is_done else None


@torch.no_grad()
def start_jobs(shelf: PolicyShelf, policies: Sequence[LoadedPolicy], jobs: Sequence[Job]) -> list[RunningJob]:
    """Draw the noise of jobs and encode their squares; noise depends on seed, tile and sample index alone."""
    base = shelf.base
    prompts = [_to_prompt(job) for job in jobs]
    conditions, _ = encode_prompts(base, prompts)
    shape = (base.latent_channels, *conditions.shape[-2:])
    started = []
    for policy, job, prompt, condition in zip(policies, jobs, prompts, conditions, strict=True):
        schedule = make_schedule(base.scheduler, job.num_inference_steps)
        noise = [noise_like(shape, "serve", prompt.prompt_id, i, "start") for i in job.sample_indices]
        latents, step = _noised_start(shelf, job, schedule, torch.stack(noise).to(base.device))
        started.append(
            RunningJob(
                job=job,
                policy=policy,
                text=shelf.embed(job.prompt) if job.guidance_scale is not None else base.text,
                prompt=prompt,
                schedule=schedule,
                condition=condition.expand(len(latents), -1, -1, -1),
                latents=latents,
                clean=latents,
                step=step,
            )
        )
    return started


def _noised_start(shelf: PolicyShelf, job: Job, schedule: Schedule, noise: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Initial latents and the first step: late in the schedule to refine images (SDEdit, arXiv:2108.01073)."""
    if job.start is None:
        return noise, 0
    step = job.num_inference_steps - max(1, round(job.strength * job.num_inference_steps))
    images = torch.stack([image_to_tensor(image) for image in job.start])
    alpha = schedule.alphas_cumprod[step].to(noise)
    return alpha.sqrt() * encode_images(shelf.base, images) + (1 - alpha).sqrt() * noise, step


def _to_prompt(job: Job) -> Prompt:
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
def advance(shelf: PolicyShelf, running: Sequence[RunningJob]) -> None:
    """One denoising step of every job, those of one UNet in one forward pass."""
    alike: dict[int, list[RunningJob]] = defaultdict(list)
    for one in running:
        alike[id(one.policy.unet)].append(one)
    for group in alike.values():
        latents = torch.cat([one.latents for one in group])
        rows = [(one.schedule, one.step) for one in group for _ in one.job.sample_indices]
        schedule, index = _schedule_of_rows(rows), torch.arange(len(rows))
        output = _predict(shelf, group, latents, schedule.timesteps.to(latents.device))
        clean, _ = split_prediction(output, latents, index, schedule)
        following, _ = transition_mean(output, latents, index, schedule, 0.0)
        sizes = [len(one.latents) for one in group]
        for one, after, estimate in zip(group, following.split(sizes), clean.split(sizes), strict=True):
            one.latents, one.clean, one.step = after, estimate, one.step + 1
            one.batch_sizes.append(len(latents))


def _schedule_of_rows(rows: Sequence[tuple[Schedule, int]]) -> Schedule:
    """A schedule whose entry i is the step at which image i stands."""
    timesteps, now, after = zip(
        *((s.timesteps[k], s.alphas_cumprod[k], s.next_alphas_cumprod[k]) for s, k in rows), strict=True
    )
    return replace(
        rows[0][0],
        timesteps=torch.stack(timesteps),
        alphas_cumprod=torch.stack(now),
        next_alphas_cumprod=torch.stack(after),
    )


def _predict(
    shelf: PolicyShelf, group: Sequence[RunningJob], latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The UNet's output for every image; guided ones go through it twice (arXiv:2207.12598, eq. 6)."""
    condition = torch.cat([one.condition for one in group])
    owners = [one for one in group for _ in one.job.sample_indices]
    scales = [one.job.guidance_scale for one in owners]
    guided = [i for i, scale in enumerate(scales) if scale not in (None, 1.0)]
    rows = torch.tensor([*range(len(owners)), *guided], device=latents.device)
    adapters = [owners[int(i)].policy.adapter for i in rows]
    texts = [one.text for one in owners] + [shelf.base.text] * len(guided)
    output = shelf.predict(
        group[0].policy.unet, adapters, latents[rows], timesteps[rows], condition[rows], _text_of_rows(texts)
    )
    towards, away = output[: len(owners)], output[len(owners) :]
    if guided:
        scale = output.new_tensor([float(scales[i] or 0.0) for i in guided]).view(-1, 1, 1, 1)
        towards = towards.index_copy(0, rows[len(owners) :], away + scale * (towards[guided] - away))
    return towards


def _text_of_rows(texts: Sequence[TextEmbedding]) -> TextEmbedding:
    first = texts[0]
    if all(text is first for text in texts):
        return first
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return replace(
        first, embedding=torch.cat([text.embedding for text in texts]), pooled=torch.cat(pooled) if pooled else None
    )


@torch.no_grad()
def estimate(shelf: PolicyShelf, running: Sequence[RunningJob]) -> list[Partial]:
    """What each job will look like, as far as its steps so far tell."""
    images, _ = _decode(shelf, running, [one.clean for one in running])
    sizes = np.cumsum([len(one.latents) for one in running])[:-1]
    parts = np.split(_to_pixels(images), sizes)
    return [Partial(images=part, index=one.partial_index or 0) for one, part in zip(running, parts, strict=True)]


@torch.no_grad()
def finish(shelf: PolicyShelf, reward: Reward | None, done: Sequence[RunningJob]) -> list[Inpainted]:
    """Decode, composite, score and check what is denoised; times are left for the engine to fill in."""
    images, masks = _decode(shelf, done, [one.latents for one in done])
    pixels = _to_pixels(images)
    captions = [one.job.prompt for one in done for _ in one.job.sample_indices]
    scores = _score(reward, images, masks, captions) if reward is not None else []
    unsafe = _find_unsafe(shelf, pixels)
    answers, start = [], 0
    for one in done:
        span = slice(start, start := start + len(one.latents))
        answers.append(
            Inpainted(
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
    shelf: PolicyShelf, running: Sequence[RunningJob], latents: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finished squares [B, 3, H, W] in [-1, 1], known pixels as they came, and masks [B, 1, H, W]."""
    images = torch.cat([one.prompt.image.expand(len(one.latents), -1, -1, -1) for one in running])
    masks = torch.cat([one.prompt.mask.expand(len(one.latents), -1, -1, -1) for one in running])
    return composite(decode_latents(shelf.base, torch.cat(latents)).cpu(), images, masks), masks


def _to_pixels(images: torch.Tensor) -> np.ndarray:
    return to_8bit(images).permute(0, 2, 3, 1).contiguous().numpy()


def _score(
    reward: Reward, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]
) -> list[dict[str, float | None]]:
    """Returns reward and bound of every image; None for what is not finite, or not known."""
    scored = reward.score(images, masks, captions)
    columns = {"reward": scored.reward, "lower": scored.lower, "upper": scored.upper}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{k: v if math.isfinite(v) else None for k, v in zip(columns, row, strict=True)} for row in rows]


def _find_unsafe(shelf: PolicyShelf, pixels: np.ndarray) -> list[bool]:
    """What the pipeline's own safety checker says of each image; nothing where it has none."""
    pipeline = shelf.base.pipeline
    if getattr(pipeline, "safety_checker", None) is None:
        return []
    inputs = pipeline.feature_extractor(list(pixels), return_tensors="pt").to(shelf.base.device)
    _, flagged = pipeline.safety_checker(images=pixels.astype(np.float32) / 255, clip_input=inputs.pixel_values)
    return [bool(flag) for flag in flagged]
