"""The Ray Serve deployment that holds the policy and repaints what has come together in a batch."""

import asyncio
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve as ray_serve

from rlhf.config import ModelConfig
from rlhf.images import image_to_tensor, mask_to_tensor, tensor_to_image
from rlhf.policy import Policy, load_policy
from rlhf.prompts import Prompt
from rlhf.reward_model import Reward, load_reward
from rlhf.rollout import rollout
from rlhf.trajectories import RolloutPlan
from serve.jobs import MAX_IMAGES, Inpainted, Job, Served

MAX_BATCH_REQUESTS = 8
"""Requests that are denoised together."""
BATCH_WAIT_S = 0.02
"""How long the first request of a batch waits for others."""


def native_size(policy: Policy) -> int:
    """Side in pixels of the square images that the UNet was made for."""
    pipeline: Any = policy.pipeline
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def inpaint_jobs(policy: Policy, reward: Reward | None, jobs: list[Job]) -> list[Inpainted]:
    """Run jobs of equal steps and n together, at most MAX_IMAGES per forward pass; answers in their order.

    Noise depends on seed and sample index alone. Rounding may differ in the last bit between
    batches of different size, so equal bytes are promised for equal batches only.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        alike[job.num_inference_steps, job.n].append(index)
    answers: dict[int, Inpainted] = {}
    for (_, n), indices in alike.items():
        share = MAX_IMAGES // n
        for start in range(0, len(indices), share):
            chunk = indices[start : start + share]
            answers.update(zip(chunk, _inpaint_alike(policy, reward, [jobs[i] for i in chunk]), strict=True))
    return [answers[i] for i in range(len(jobs))]


def _inpaint_alike(policy: Policy, reward: Reward | None, jobs: list[Job]) -> list[Inpainted]:
    n = jobs[0].n
    prompts = [_to_prompt(job) for job in jobs]
    plan = RolloutPlan(num_inference_steps=jobs[0].num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    images = rollout(policy, prompts, plan, sample_indices=range(n), seed_key=("serve",)).images
    masks = torch.stack([p.mask for p in prompts]).repeat_interleave(n, dim=0)
    pixels = np.stack([np.asarray(tensor_to_image(image)) for image in images])
    scores = _score(reward, images, masks) if reward is not None else []
    spans = [slice(start, start + n) for start in range(0, len(images), n)]
    return [Inpainted(images=pixels[s], scores=tuple(scores[s]), policy_version=policy.version) for s in spans]


def _to_prompt(job: Job) -> Prompt:
    # The seed is the prompt's id, so that requests of different seeds share a forward pass.
    return Prompt(
        prompt_id=str(job.seed),
        photograph="",
        source="serve",
        hole="",
        split="",
        image=image_to_tensor(job.image),
        mask=mask_to_tensor(job.hole),
    )


def _score(reward: Reward, images: torch.Tensor, masks: torch.Tensor) -> list[dict[str, float | None]]:
    scored = reward.score(images, masks)
    columns = {"reward": scored.reward, "lower": scored.lower, "upper": scored.upper}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{k: v if math.isfinite(v) else None for k, v in zip(columns, row, strict=True)} for row in rows]


@ray_serve.deployment(
    max_ongoing_requests=2 * MAX_BATCH_REQUESTS, max_queued_requests=64, max_constructor_retry_count=1
)
class Inpainter:
    """A replica: one policy, one batch at a time, the event loop free for health checks meanwhile."""

    def __init__(self, model: ModelConfig, adapter: Path | None, reward: Path | None) -> None:
        self.policy = load_policy(model, adapter)
        self.reward = load_reward(reward) if reward is not None else None

    async def describe(self) -> Served:
        """What is served; an answer means that the policy is loaded."""
        has_reward = self.reward is not None
        return Served(native_px=native_size(self.policy), policy_version=self.policy.version, has_reward=has_reward)

    @ray_serve.batch(max_batch_size=MAX_BATCH_REQUESTS, batch_wait_timeout_s=BATCH_WAIT_S)
    async def inpaint(self, jobs: list[Job]) -> list[Inpainted]:
        """Called with one Job, answered with one Inpainted; Ray Serve gathers the list."""
        return await asyncio.to_thread(inpaint_jobs, self.policy, self.reward, jobs)
